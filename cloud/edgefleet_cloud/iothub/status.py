"""How the fleet manager stands with its Azure IoT Hubs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sqlalchemy import func, select
from sqlmodel import Session, col

from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_cloud.errors import NotFoundError
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
        view = self._views.get(name)
        if view is None:
            raise NotFoundError(
                f"There is no IoT Hub {name[:80]!r}.", hint="GET /v1/iothubs lists them."
            )
        return self._stand(session, view, named=named)

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
