"""A rollout to a fleet on one S1 hub: how much of its limit is used, how many calls it turns down.

The fleet manager is the real one, in this process; hub and devices are simulated in another
(`iothub_devices`). Twin updates are counted by the hub: the fleet manager's writes and the devices'
reports share one limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgefleet_cloud.devices.tables import DeviceRow
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder, small_package

DEVICES, QUICK = 5000, 300
LIMIT = 50.0
"""Twin updates a second of an S1 hub, whatever its units; docs/iothub.md has the source."""
POLL_S = 1.0


@contextmanager
def simulated(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Run hub and devices; give what they say of themselves."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.benchmarks.iothub_devices", str(folder), str(count)]
    with subprocess.Popen(command) as process:
        try:
            while not (folder / "ready.json").exists():
                assert process.poll() is None, "the simulated hub has ended"
                time.sleep(0.1)
            yield json.loads((folder / "ready.json").read_text())
        finally:
            process.terminate()


def cloud_on(folder: Path, hub: dict[str, Any]) -> RunningCloud:
    """Return a fleet manager that reaches this hub."""
    fleet = FleetFolder(folder)
    with fleet.config.open("a") as file:
        file.write(
            f'\n[[iothub]]\nname = "main"\nhost = "{hub["host"]}"\ngateway = "{hub["rest"]}"\n'
            f'connection_file = "{hub["connection_string_file"]}"\n'
            f'events_file = "{hub["events_connection_string_file"]}"\n'
            f'ca = "{hub["ca"]}"\ntier = "S1"\nunits = 1\n'
        )
    return RunningCloud(fleet, background=True)


def enroll(cloud: RunningCloud, devices: dict[str, list[str]]) -> None:
    """Add devices as enrolment leaves them."""
    with cloud.program.database.write() as session:
        for name, (pem, key) in devices.items():
            session.add(
                DeviceRow(
                    id=name,
                    created="2026-01-31T11:00:00.000Z",
                    hardware="generic-x86_64",
                    state="enrolled",
                    public_key=pem,
                    key=key,
                    enrollment=1,
                    online=True,
                    way="main",
                )
            )


def watch(cloud: RunningCloud, rollout: str) -> list[dict[str, Any]]:
    """Look at a rollout as an operator does, each second until its end."""
    seen = []
    while True:
        found = cloud.client.get(f"/v1/rollouts/{rollout}").json()
        hub = cloud.client.get("/v1/iothubs/main").json()
        seen.append({"at": time.time(), "rollout": found, "hub": hub})
        if found["state"] not in {"running", "created"}:
            return seen
        time.sleep(POLL_S)


def run(*, quick: bool) -> dict[str, Any]:
    """Measure one rollout."""
    count = QUICK if quick else DEVICES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with simulated(folder / "sim", count) as hub:
            cloud = cloud_on(folder / "fleet", hub)
            try:
                manifest, data, blobs = small_package()
                assert cloud.publish(manifest, data, blobs).status_code == 201
                enroll(cloud, hub["devices"])
                wish = {"model": "digits", "version": "1.0.0", "policy": {"probation_s": 10}}
                made = cloud.client.post("/v1/rollouts", json=wish)
                assert made.status_code == 201, made.text
                began = time.time()
                seen = watch(cloud, made.json()["id"])
            finally:
                cloud.stop()
        lines = (folder / "sim" / "counts.jsonl").read_text().splitlines()
        return figures(count, began, seen, [json.loads(line) for line in lines])


def figures(
    count: int, began: float, seen: list[dict[str, Any]], counts: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what came of it.

    The share of the limit is taken from the rollout's start until 95 of 100 devices have ended:
    what follows is the last ones' probation. Progress is what an operator sees in a second.
    """
    ended = [progress(look["rollout"]) for look in seen]
    nearly = next(
        look["at"] for look, done in zip(seen, ended, strict=True) if done >= 0.95 * count
    )
    inside = [each for each in counts if began <= each["at"] <= nearly]
    updates = [each["counts"]["twin_updates"] for each in inside]
    taken = [each["calls"] for each in updates]
    last = counts[-1]["counts"]["twin_updates"]
    still = longest_still([look["hub"] for look in seen], ended)
    seconds = nearly - began
    return {
        "devices": count,
        "state": seen[-1]["rollout"]["state"],
        "seconds": round(seen[-1]["at"] - began, 1),
        "twin_updates": last["calls"],
        "used_pct_of_limit": round(100 * (taken[-1] - taken[0]) / (LIMIT * seconds), 1),
        "turned_down_pct": round(100 * last["throttled"] / (last["calls"] + last["throttled"]), 3),
        "reports_again": counts[-1]["again"],
        "broken_documents": counts[-1]["broken"],
        "looks": len(seen),
        "longest_without_progress_s": still * POLL_S,
    }


def progress(rollout: dict[str, Any]) -> int:
    """Return how many devices have ended."""
    return sum(
        number
        for wave in rollout["waves"]
        for state, number in wave["counts"].items()
        if state in {"succeeded", "already_current", "failed", "rolled_back"}
    )


def longest_still(hubs: list[dict[str, Any]], ended: list[int]) -> int:
    """Return in how many looks in a row neither documents sent nor devices ended have grown."""
    told = [hub["documents"]["sent"] for hub in hubs]
    longest = now = 0
    for before, after in zip(range(len(ended) - 1), range(1, len(ended)), strict=True):
        moved = told[after] > told[before] or ended[after] > ended[before]
        now = 0 if moved else now + 1
        longest = max(longest, now)
    return longest


__all__ = ["run"]
