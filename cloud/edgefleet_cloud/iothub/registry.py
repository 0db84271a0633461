"""Keeps a hub's registry as the fleet is: enrolled devices in, revoked ones out, for good.

What is to be done follows from the devices' states and what the registry was last told, so that a
fleet manager that died in between finishes at its next start.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from edgefleet_cloud.database import Database
from edgefleet_cloud.devices import repository as devices
from edgefleet_cloud.devices.tables import ENROLLED
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import repository
from edgefleet_cloud.iothub.pacing import Pacer
from edgefleet_cloud.iothub.repository import Work
from edgefleet_cloud.iothub.rest import HubRest, RefusedError, Throttled
from edgefleet_cloud.iothub.tables import ABSENT, DISABLED, ENABLED
from edgefleet_cloud.ports import Clock, EventSink, system_clock
from edgefleet_shared.errors import EdgeFleetError, UnavailableError
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

AT_A_TIME = 100
RETRY_S = 10.0
STOP_S = 30.0
_KEPT = ("deviceId", "authentication", "capabilities", "deviceScope", "parentScopes")
"""What of an identity is sent back with its new status."""

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a registry needs."""

    hub: IotHub
    rest: HubRest
    pacer: Pacer
    database: Database
    events: EventSink


class Registry:
    """Works in a thread of its own; what fails is tried again until it is done.

    Args:
        parts: What it needs.
        settled: Told, in its thread, of each device whose registration has changed.
        clock: Dates what is noted.
        retry_s: Seconds between two tries.
    """

    def __init__(
        self,
        parts: Parts,
        settled: Callable[[str], None] = lambda _device: None,
        clock: Clock = system_clock,
        retry_s: float = RETRY_S,
    ) -> None:
        self._hub, self._rest, self._pacer, self._database, self._events = parts
        self._settled, self._clock, self._retry_s = settled, clock, retry_s
        self._wake = threading.Event()
        self._over = False
        name = f"registry-{self._hub.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Go on with what was left undone."""
        self._wake.set()
        self._thread.start()

    def stop(self) -> None:
        """Stop; what is undone is done at the next start."""
        self._over = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def wake(self) -> None:
        """Look now: a device has enrolled, or is to be shut out."""
        self._wake.set()

    def correct(self, device: str, there: str) -> None:
        """Note what the registry says of a device, and put right what is wrong."""
        with self._database.write() as session:
            if devices.find(session, device) is None:
                return
            self._note(session, device, status=there)
        self.wake()

    def missing(self, device: str) -> bool:
        """Note that the hub does not know a device; return whether it will be created."""
        with self._database.write() as session:
            row = devices.find(session, device)
            if row is None:
                return False
            self._note(session, device, status=ABSENT, sha256="", content="", renew="")
            wanted = row.state == ENROLLED and self._creates
        if wanted:
            self.wake()
        return wanted

    @property
    def _creates(self) -> bool:
        """Return whether devices are created here; the Device Provisioning Service does else."""
        return not self._hub.dps_scope

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(self._retry_s)
            self._wake.clear()
            try:
                self._turn()
            except UnavailableError as error:
                log.warning("The registry of IoT Hub %s waits: %s", self._hub.name, error)
            except Exception:
                log.exception("The registry of IoT Hub %s failed", self._hub.name)

    def _turn(self) -> None:
        """Do all that is to be done; what is refused waits for the next turn."""
        refused: set[str] = set()
        while not self._over:
            with self._database.read() as session:
                found = repository.work(session, self._hub.name, AT_A_TIME, create=self._creates)
            due = [each for each in found if each.device not in refused]
            if not due:
                return
            for work in due:
                if self._over:
                    return
                if not self._try(work):
                    refused.add(work.device)

    def _try(self, work: Work) -> bool:
        try:
            status = self._do(work)
        except Throttled as error:
            self._pacer.refused("registry", error.retry_after_s)
            raise
        except UnavailableError:
            raise
        except EdgeFleetError as error:
            log.warning("%s at IoT Hub %s: %s", work.device, self._hub.name, error)
            with self._database.write() as session:
                self._note(session, work.device)  # so that others are tried before it
            return False
        with self._database.write() as session:
            gone = {"sha256": "", "content": "", "renew": ""} if status == ABSENT else {}
            self._note(session, work.device, status=status, **gone)
            self._tell(session, work, status)
        self._settled(work.device)
        return True

    def _do(self, work: Work) -> str:
        """Make the registry say what it must; return what it says then."""
        if work.wanted == ABSENT:
            self._pacer.take("registry")
            self._rest.delete_device(work.device)
            return ABSENT
        if work.wanted == ENABLED and work.status != DISABLED and self._creates:
            try:
                self._pacer.take("registry")
                self._rest.put_device(identity(work.device))
            except RefusedError as error:
                if error.status != 409:
                    raise
            else:
                return ENABLED
        self._pacer.take("registry")
        found = self._rest.device(work.device)
        if found is None:
            return ABSENT
        if found.get("status") != work.wanted:
            self._pacer.take("registry")
            self._rest.put_device(with_status(found, work.wanted), etag="*")
        return work.wanted

    def _note(self, session: Any, device: str, **fields: str) -> None:
        now = format_time(self._clock())
        repository.change(session, device, self._hub.name, now, **fields)

    def _tell(self, session: Any, work: Work, status: str) -> None:
        self._events.record(
            session,
            type=f"device.hub_{status}",
            step=Step.TARGET,
            subject=f"devices/{work.device}",
            message=f"{work.device} is {status} at the IoT Hub {self._hub.name}.",
            data={"hub": self._hub.name},
            before={"status": work.status},
            after={"status": status},
        )


def identity(device: str) -> dict[str, Any]:
    """Return the identity of a new device: it proves itself by the fleet's own certificate."""
    return {
        "deviceId": device,
        "status": ENABLED,
        "authentication": {"type": "certificateAuthority"},
    }


def with_status(found: Mapping[str, Any], status: str) -> dict[str, Any]:
    """Return an identity as it is, with another status."""
    kept = {key: found[key] for key in _KEPT if key in found}
    return {**kept, "status": status}
