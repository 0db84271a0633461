"""How the fleet manager stands with its Azure IoT Hubs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import func, select
from sqlmodel import Session, col

from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import registry_repository as repository
from edgefleet_cloud.iothub.event_tables import IotHubRow
from edgefleet_cloud.iothub.limits import Usage
from edgefleet_cloud.iothub.partitions import Lag

NAMED = 100
"""Devices that are named where registry and fleet disagree; more are only counted."""


class Down(Protocol):
    """The half that writes to a hub."""

    @property
    def connected(self) -> bool:
        """Return whether the last write has reached the hub, and events flow."""
        ...

    @property
    def pending(self) -> int:
        """Return how many devices have something to be told."""
        ...

    @property
    def sent(self) -> int:
        """Return how many twins were written since the start."""
        ...

    def usage(self) -> Usage:
        """Return how the tier's limit of twin updates is used."""
        ...

    def invoke(self, device: str, method: str) -> dict[str, Any]:
        """Call a direct method; return its `status` and `payload`.

        Raises:
            NotFoundError: The device is unknown there, or not connected.
        """
        ...


class Up(Protocol):
    """The half that reads a hub's events."""

    @property
    def connected(self) -> bool:
        """Return whether events can be read."""
        ...

    @property
    def lags(self) -> Sequence[Lag]:
        """Return how far each partition is behind."""
        ...


class View(NamedTuple):
    """One hub and both halves of what works with it."""

    hub: IotHub
    down: Down
    up: Up


class Disagreement(NamedTuple):
    """Devices that only one side knows: how many, and the first of them."""

    total: int
    first: Sequence[str]


class Standing(NamedTuple):
    """One hub as it stands: its view, its row, devices that speak by it, and disagreements."""

    view: View
    row: IotHubRow
    devices: int
    unknown: Disagreement
    missing: Disagreement


class Pong(NamedTuple):
    """A device's answer: which start of which version of the agent it is, and after how long."""

    boot: str
    agent: str
    ms: int


class Hubs:
    """The hubs that are configured.

    Args:
        views: In the order of the configuration.
    """

    def __init__(self, views: Sequence[View] = ()) -> None:
        self._views = {view.hub.name: view for view in views}

    def all(self, session: Session, *, named: bool) -> Sequence[Standing]:
        """Return every hub; `named` says whether devices may be named."""
        return [self._stand(session, view, named=named) for view in self._views.values()]

    def get(self, session: Session, name: str, *, named: bool) -> Standing:
        """Return one hub.

        Raises:
            NotFoundError: There is none of this name.
        """
        return self._stand(session, self._view(name), named=named)

    def ping(self, name: str, device: str) -> Pong:
        """Ask a device, by a direct method, whether it hears us now.

        Raises:
            NotFoundError: There is no hub of this name.
            ConflictError: The device is not connected to it (code `not_connected`).
            UnavailableError: It does not answer in time, or the hub does not.
        """
        view = self._view(name)
        began = time.monotonic()
        try:
            said = view.down.invoke(device, "ping")
        except NotFoundError as error:
            raise ConflictError(
                f"{device} is not connected to IoT Hub {name}.",
                code="not_connected",
                hint="What it is to run waits in its twin; `way` of the device says where it spoke "
                "last.",
            ) from error
        took = round(1000 * (time.monotonic() - began))
        found = said.get("payload")
        told = found if isinstance(found, dict) else {}
        return Pong(str(told.get("boot", "")), str(told.get("agent", "")), took)

    def _view(self, name: str) -> View:
        view = self._views.get(name)
        if view is None:
            raise NotFoundError(
                f"There is no IoT Hub {name[:80]!r}.", hint="GET /v1/iothubs lists them."
            )
        return view

    def _stand(self, session: Session, view: View, *, named: bool) -> Standing:
        name, limit = view.hub.name, NAMED if named else 0
        speaking = select(func.count()).where(
            col(DeviceRow.way) == name, col(DeviceRow.state) == ENROLLED
        )
        return Standing(
            view,
            repository.hub(session, name),
            session.scalar(speaking) or 0,
            Disagreement(*repository.listed(session, name, "unknown", limit)),
            Disagreement(*repository.listed(session, name, "missing", limit)),
        )
