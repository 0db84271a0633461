"""Registers many devices at once: all of them, or none and every reason why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope
from edgefleet_cloud.devices.labels import check_hardware, check_labels
from edgefleet_cloud.devices.repository import taken
from edgefleet_cloud.devices.scoping import check_stays
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.errors import ForbiddenError
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_device


class Wanted(NamedTuple):
    """A device to register."""

    id: str
    labels: dict[str, str]
    hardware: str


class Problem(NamedTuple):
    """What is wrong with one device: its place in the list, from 0, and the field."""

    place: int
    field: str
    message: str


class RefusedImportError(InvalidInputError):
    """Nothing was registered; `extra` holds every problem, for the answer.

    Args:
        problems: What is wrong.
        total: How many devices there were.
    """

    default_code = "import_refused"

    def __init__(self, problems: Sequence[Problem], total: int) -> None:
        first = problems[0]
        super().__init__(
            f"{len(problems)} of {total} devices cannot be registered, so none was. "
            f"The first: {first.message}",
            hint="`problems` names each by its place in the list, from 0, and by its field.",
        )
        self.extra = {"problems": [problem._asdict() for problem in problems[:1000]]}


def register(
    session: Session,
    devices: Devices,
    wanted: Sequence[Wanted],
    actor: str,
    scope: Scope,
    *,
    dry_run: bool,
) -> None:
    """Register every device, in the caller's transaction; with `dry_run` only check.

    Raises:
        RefusedImportError: One cannot be registered (code `import_refused`).
    """
    problems = _check(session, wanted, scope)
    if problems:
        raise RefusedImportError(problems, len(wanted))
    if not dry_run:
        for device in wanted:
            devices.create(session, device.id, device.labels, device.hardware, actor, scope)


def _check(session: Session, wanted: Sequence[Wanted], scope: Scope) -> list[Problem]:
    there = taken(session, [device.id for device in wanted])
    seen: set[str] = set()
    found: list[Problem] = []
    for place, device in enumerate(wanted):
        found += [Problem(place, field, why) for field, why in _wrong(device, scope)]
        if device.id in seen:
            found.append(Problem(place, "id", f"{device.id!r} stands there twice."))
        elif device.id in there:
            found.append(Problem(place, "id", f"There is a device {device.id!r} already."))
        seen.add(device.id)
    return found


def _wrong(device: Wanted, scope: Scope) -> Iterator[tuple[str, str]]:
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("id", lambda: check_device(device.id)),
        ("hardware", lambda: check_hardware(device.hardware)),
        ("labels", lambda: check_labels(device.labels)),
        ("labels", lambda: check_stays(scope, _row(device))),
    )
    for field, check in checks:
        try:
            check()
        except (InvalidInputError, ForbiddenError) as error:
            yield field, error.message


def _row(device: Wanted) -> DeviceRow:
    return DeviceRow(id=device.id, created="", labels=device.labels, hardware=device.hardware)
