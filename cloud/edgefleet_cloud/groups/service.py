"""What can be done with groups. The caller owns the session and its commit."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.errors import ConflictError, NotFoundError
from edgefleet_cloud.filters import parse
from edgefleet_cloud.groups import repository
from edgefleet_cloud.groups.tables import GroupRow
from edgefleet_cloud.paging import PageQuery, paginate
from edgefleet_cloud.ports import Clock, EventSink, system_clock
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time


class Groups:
    """Named selectors over devices.

    Args:
        events: Told of what operators change.
        devices: Reads selectors and finds their devices.
        clock: Dates changes.
    """

    def __init__(self, events: EventSink, devices: Devices, clock: Clock = system_clock) -> None:
        self._events = events
        self._clock = clock
        self.devices = devices

    def get(self, session: Session, name: str) -> GroupRow:
        """Return a group.

        Raises:
            NotFoundError: There is none of this name.
        """
        row = repository.find(session, name)
        if row is None:
            raise NotFoundError(
                f"There is no group {name[:80]!r}.", hint="GET /v1/groups lists them."
            )
        return row

    def page(self, session: Session, query: PageQuery) -> tuple[Sequence[GroupRow], str]:
        """Return one page and the token of the next.

        Raises:
            InvalidInputError: A bad filter, order or token.
        """
        node = parse(query.filter, repository.SCHEMA) if query.filter else None
        sortable = {"name": GroupRow.name, "created": GroupRow.created}
        return paginate(
            session,
            repository.statement(node),
            query,
            sortable,
            GroupRow.name,
            default="name",
        )

    def members(self, session: Session, name: str) -> Sequence[DeviceRow]:
        """Return the devices that a group means now, by id.

        Raises:
            NotFoundError: There is no such group.
        """
        return self.devices.matching(session, self.get(session, name).selector)

    def page_of_members(
        self, session: Session, name: str, query: PageQuery
    ) -> tuple[Sequence[DeviceRow], str]:
        """Return one page of the devices that a group means now.

        Raises:
            NotFoundError: There is no such group.
            InvalidInputError: A bad filter, order or token.
        """
        group = self.devices.selector(self.get(session, name).selector)
        return self.devices.page(session, query, within=group)

    def create(self, session: Session, name: str, selector: str, actor: str) -> GroupRow:
        """Name a selector.

        Raises:
            InvalidInputError: A bad name or selector.
            ConflictError: The name is taken.
        """
        check_name(name, "group")
        self.devices.selector(selector)
        if repository.find(session, name):
            raise ConflictError(
                f"There is a group {name!r} already.",
                code="group_exists",
                hint="PUT /v1/groups/{name} changes its selector.",
            )
        now = format_time(self._clock())
        row = GroupRow(name=name, selector=selector, created=now, updated=now)
        session.add(row)
        session.flush()
        self._tell(session, row, "created", f"Group {name} means {selector}.", actor)
        return row

    def change(self, session: Session, row: GroupRow, selector: str, actor: str) -> GroupRow:
        """Give a group another selector; rollouts that have begun keep their devices.

        Raises:
            InvalidInputError: A bad selector.
        """
        self.devices.selector(selector)
        row.selector, row.updated = selector, format_time(self._clock())
        row.revision += 1
        session.add(row)
        self._tell(session, row, "changed", f"Group {row.name} now means {selector}.", actor)
        return row

    def delete(self, session: Session, row: GroupRow, actor: str) -> None:
        """Forget a name; its devices are untouched."""
        session.delete(row)
        self._tell(session, row, "deleted", f"Group {row.name} is deleted.", actor)

    def _tell(self, session: Session, row: GroupRow, what: str, message: str, actor: str) -> None:
        self._events.record(
            session,
            type=f"group.{what}",
            step=Step.TARGET,
            subject=f"groups/{row.name}",
            message=message,
            actor=actor,
            data={"selector": row.selector},
        )
