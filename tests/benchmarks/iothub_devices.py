"""A hub and thousands of simulated devices, in a process of their own: `python -m ... FOLDER N`.

Each device has a key and signs its reports as an agent does; it does not judge the document, load a
model or hold a connection. Beside the fleet manager's traffic it makes what the hub counts: reports
on its twin, sent again with jitter when the hub answers 429.
"""

from __future__ import annotations

import base64
import heapq
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from edgefleet_provisioning.iothub_double.__main__ import facts
from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.state import Hub
from edgefleet_provisioning.iothub_double.virtual import Crowd, VirtualDevice
from edgefleet_shared import strict_json, twin
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import Assignment, Desired, Reported
from tests.fakes.speaking_device import SpeakingDevice, slot_report

COURSE = ((1.0, "downloading"), (3.0, "probation"), (13.0, "succeeded"))
"""Seconds after the document, and what is then reported: as an agent whose reports are paced."""
RETRY_S = (1.0, 2.0)


class Due(NamedTuple):
    """A report to make at a time."""

    at: float
    number: int
    device: Simulated
    state: str
    document: Desired
    assignment: Assignment


class Simulated:
    """One device; hears its twin and reports on it."""

    def __init__(self, name: str, fleet: Fleet) -> None:
        self.speaker = SpeakingDevice(name)
        self._fleet, self._seq, self._counter = fleet, 0, 0
        self.at_hub: VirtualDevice

    def desired(self, _: VirtualDevice, patch: dict[str, Any]) -> None:
        """Take up a document once, and report on it in time."""
        try:
            found = twin.read_document(patch)
        except InvalidInputError:
            self._fleet.broken += 1
            return
        if found is None or found.payload is None:
            return
        document = strict_json.decode(found.payload, Desired, max_bytes=2**20, what="document")
        if document.counter > self._counter:
            self._counter = document.counter
            self._fleet.heard(self, document)

    def report(self, due: Due) -> tuple[bytes, Reported]:
        """Return the sealed report of a state."""
        slot = due.assignment.slots["digits"]
        self._seq += 1
        done = due.state == "succeeded"
        said = slot_report(slot.version, deployment=slot.deployment, state=due.state, seq=self._seq)
        fields = {"active": slot.manifest if done else "", "verdict": "pass" if done else ""}
        slots = {"digits": type(said)(**{**as_dict(said), **fields, "target": slot.manifest})}
        sealed = self.speaker.reported(self._seq, counter=due.document.counter, slots=slots)
        summary = Reported(1, self.speaker.name, "b", self._seq, "", due.document.counter, slots)
        return sealed, summary


class Fleet:
    """All devices and the queue of what they will report."""

    def __init__(self, hub: Hub, names: list[str]) -> None:
        hub.throttles.set("connections", 1e6)  # they are there already when it begins
        crowd = Crowd(hub)
        self._queue: list[Due] = []
        self._lock = threading.Condition()
        self._number = 0
        self.broken = self.reports = self.again = 0
        self.devices = [Simulated(name, self) for name in names]
        for device in self.devices:
            name = device.speaker.name
            hub.registry.create(name, auth="certificateAuthority")
            device.at_hub = crowd.join(name, device.desired)

    def heard(self, device: Simulated, document: Desired) -> None:
        """Put a device's course into the queue."""
        envelope = json.loads(base64.b64decode(document.assignment))
        payload = base64.b64decode(envelope["payload"])
        assignment = strict_json.decode(payload, Assignment, max_bytes=2**20, what="assignment")
        now = time.monotonic()
        for after, state in COURSE:
            wait = after * random.uniform(0.8, 1.2)
            self._put(now + wait, device, state, document, assignment)

    def _put(self, at: float, device: Simulated, state: str, *rest: Any) -> None:
        with self._lock:
            self._number += 1
            heapq.heappush(self._queue, Due(at, self._number, device, state, *rest))
            self._lock.notify()

    def run(self) -> None:
        """Report what is due, for ever."""
        while True:
            with self._lock:
                while not self._queue or self._queue[0].at > time.monotonic():
                    wait = self._queue[0].at - time.monotonic() if self._queue else 1.0
                    self._lock.wait(max(0.0, wait))
                due = heapq.heappop(self._queue)
            self._report(due)

    def _report(self, due: Due) -> None:
        sealed, summary = due.device.report(due)
        patch = twin.report_patch(sealed, summary)
        assert patch is not None
        try:
            due.device.at_hub.report(patch)
        except HubError as error:
            if error.status != 429:
                raise
            self.again += 1
            wait = random.uniform(*RETRY_S)
            self._put(time.monotonic() + wait, due.device, due.state, due.document, due.assignment)
            return
        self.reports += 1


def as_dict(struct: Any) -> dict[str, Any]:
    """Return a struct's fields."""
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def main() -> None:
    """Start the hub, tell where it is and who the devices are, and simulate until we are ended."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    with AzureDouble(folder, hubs=("fleet.azure-devices.test",), websockets=False) as azure:
        hub = azure.hub()
        fleet = Fleet(hub, [f"sim-{number:05}" for number in range(count)])
        keys = {d.speaker.name: [d.speaker.pem, d.speaker.key] for d in fleet.devices}
        threading.Thread(target=fleet.run, daemon=True).start()
        write(folder / "ready.json", {**facts(azure, folder), "devices": keys})
        while True:
            time.sleep(0.5)
            told = {"at": time.time(), "counts": hub.throttles.counts(), "reports": fleet.reports,
                    "again": fleet.again, "broken": fleet.broken}  # fmt: skip
            with (folder / "counts.jsonl").open("a") as file:
                file.write(json.dumps(told) + "\n")


def write(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    path.with_suffix(".new").write_text(json.dumps(value))
    path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    main()
