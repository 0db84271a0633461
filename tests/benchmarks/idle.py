"""What agentd costs while nothing happens: private memory and processor time, all parts real.

agentd is installed as on a device (`device.py`), connected over MQTT to a real broker, and one
model is served by the real gateway; nobody asks it anything. Memory is what the process shares with
nobody (`smaps_rollup`), time what the scheduler has counted for all its threads (`schedstat`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgefleet_agent.identity import load_key
from edgefleet_cloud.ports import system_clock
from edgefleet_shared import topics
from tests.agent.world import World, until
from tests.benchmarks import device
from tests.brokers import SecureBroker
from tests.models import linear

SETTLE_S = 5.0
QUICK_S, FULL_S = 20.0, 180.0
AIM_MIB, AIM_PERCENT = 35.0, 0.5


def run(*, quick: bool) -> dict[str, Any]:
    """Return the figures; ends within 40 s if `quick`."""
    with _serving() as (pid, folder):
        return _measure(pid, folder, QUICK_S if quick else FULL_S)


def serving_memory_mib() -> float:
    """Return agentd's private memory while it serves: all of its trust code has been used."""
    with _serving() as (pid, _):
        time.sleep(SETTLE_S)
        return _private_kb(pid) / 1024


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """Give the pid of an agentd that serves a tiny model; it and its gateway end after."""
    with _serving() as (pid, _):
        yield pid


@contextlib.contextmanager
def _serving() -> Iterator[tuple[int, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
    world, broker = World(), SecureBroker("auto", folder)
    process = None
    try:
        broker.start()
        process = _start(device.install(folder), world, folder, broker)
        yield process.pid, folder
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        broker.close()
        world.close()
        shutil.rmtree(folder)


def _start(
    python: str, world: World, folder: Path, broker: SecureBroker
) -> subprocess.Popen[bytes]:
    """Start agentd and wait until it serves a model that came the whole way."""
    identity = world.enrolled(folder / "state", url=broker.broker.url)
    certificate = broker.ca().sign(
        load_key(identity.folder).public_key(), identity.fleet, identity.device, system_clock()
    )
    identity.certificate_file.write_text(certificate)
    shutil.copy(broker.credentials.authorities, identity.ca_file)
    toml = folder / "agent.toml"
    toml.write_text('state_dir = "state"\nrun_dir = "run"\n[inference]\ntcp = "127.0.0.1:0"\n')
    with broker.client(broker.credentials.manager) as manager:
        document = _desired(world, identity)
        manager.publish(topics.desired(identity.device), document, retain=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "edgefleet_agent", "run", "--config", str(toml)],
            stdout=log,
            stderr=log,
        )
    until(lambda: _serves(folder / "run" / "status.json"), str(folder / "log"), 30)
    return process


def _desired(world: World, identity: Any) -> bytes:
    return world.assign(identity, world.publish("1.0.0", body=linear()))


def _serves(path: Path) -> bool:
    if not path.exists():
        return False
    slots = json.loads(path.read_text())["slots"]
    return slots.get("digits", {}).get("state") == "succeeded"


def _measure(agentd: int, folder: Path, seconds: float) -> dict[str, Any]:
    gateway = int((folder / "run" / "gateway.pid").read_text())
    time.sleep(SETTLE_S)
    begun = time.monotonic()
    before = {pid: cpu_s(pid) for pid in (agentd, gateway)}
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    percent = {pid: 100 * (cpu_s(pid) - cpu) / elapsed for pid, cpu in before.items()}
    private = _private_kb(agentd) / 1024
    return {
        "agentd_private_mib": round(private, 2),
        "agentd_private_of_aim": round(private / AIM_MIB, 3),
        "agentd_cpu_percent": round(percent[agentd], 3),
        "agentd_cpu_of_aim": round(percent[agentd] / AIM_PERCENT, 3),
        "agentd_threads": len(list(Path(f"/proc/{agentd}/task").iterdir())),
        "gateway_private_mib": round(_private_kb(gateway) / 1024, 2),
        "gateway_cpu_percent": round(percent[gateway], 3),
        "seconds": round(elapsed, 1),
    }


def _private_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def cpu_s(pid: int) -> float:
    """Return the seconds that all threads have run; finer than the ticks of `stat`."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9
