"""SIGKILL at every step of a renewal on disk: a real agent's process, a real fleet manager."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from edgefleet_agent.identity import Identity, key_digest
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder

CALLS = ("rename", "unlink", "fsync")
ENDS = {"rename": 2, "unlink": 1, "fsync": 2}
"""Of each system call so many points, spread over the renewal, are killed in a run."""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A fleet manager over HTTP."""
    running = RunningCloud(FleetFolder(tmp_path_factory.mktemp("kill") / "fleet"))
    yield running
    running.stop()


class Device:
    """A device's folder, and its agent as a process."""

    def __init__(self, cloud: RunningCloud, name: str, folder: Path) -> None:
        self.name, self.cloud = name, cloud
        self.state = folder / "state"
        self.config = folder / "agent.toml"
        self.config.write_text(f'state_dir = "{self.state}"\nrun_dir = "{folder / "run"}"\n')
        cloud.client.post("/v1/devices", json={"id": name}).raise_for_status()
        ticket = cloud.client.post(f"/v1/devices/{name}/tickets").json()["ticket"]
        self.agent("enroll", "--ticket", ticket)

    def agent(self, *arguments: str, under: tuple[str, ...] = (), check: bool = True):
        """Run one command of the agent's."""
        command = [sys.executable, "-m", "edgefleet_agent", *arguments]
        return subprocess.run(
            [*under, *command, "--config", str(self.config)],
            check=check, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def key(self) -> str:
        """Return the digest of the key, which its certificate is for."""
        identity = Identity(self.state / "identity")
        found = identity.certificate()
        assert isinstance(found, x509.Certificate)
        assert key_digest(found) == identity.who.key
        return identity.who.key

    def pinned(self) -> str:
        """Return the key that the fleet manager knows."""
        return self.cloud.client.get(f"/v1/devices/{self.name}").json()["key"]


@pytest.fixture(scope="module")
def points(cloud, tmp_path_factory):
    """Return how often a renewal calls each of the system calls."""
    device = Device(cloud, "probe", tmp_path_factory.mktemp("probe"))
    log = tmp_path_factory.mktemp("log") / "trace"
    trace = ("strace", "-f", "-o", str(log), "-e", f"trace={','.join(CALLS)}")
    device.agent("renew")  # the first one also fills the cache of trust metadata
    device.agent("renew", under=trace)
    text = log.read_text()
    return {call: len(re.findall(rf"\b{call}\(", text)) for call in CALLS}


def chosen(total: int, count: int) -> list[int]:
    """Return `count` numbers from 1 to `total`, first and last among them."""
    count = min(count, total)
    return sorted({1 + round(i * (total - 1) / max(count - 1, 1)) for i in range(count)})


@pytest.mark.strace
@pytest.mark.parametrize("call", CALLS)
def test_a_killed_renewal_is_old_or_new_and_completes(cloud, points, tmp_path, call):
    """Key and certificate fit whenever it dies; once more, and server and device agree."""
    assert points[call] > 0
    device = Device(cloud, f"{call}-1", tmp_path)
    device.agent("renew")
    for number in chosen(points[call], ENDS[call]):
        before = device.key()
        inject = f"inject={call}:signal=KILL:when={number}"
        kill = ("strace", "-f", "-o", "/dev/null", "-e", inject)
        assert device.agent("renew", under=kill, check=False).returncode != 0
        after = device.key()
        assert after in {before, device.pinned()}
        device.agent("renew")
        assert device.key() == device.pinned() != before
