"""What can be done with groups. The caller owns the session and its commit."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session

from edgefleet_cloud.auth.caller import Scope, describe, read_scope
from edgefleet_cloud.auth.roles import Role
from edgefleet_cloud.devices.service import Devices
from edgefleet_cloud.devices.tables import DeviceRow
from edgefleet_cloud.errors import ConflictError, ForbiddenError, NotFoundError
from edgefleet_cloud.filters import Node, parse
from edgefleet_cloud.filters.tree import Or
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

    def get(self, session: Session, name: str, scope: Scope = None) -> GroupRow:
        """Return a group: one of the whole fleet, or one made within the same scope.

        Raises:
            NotFoundError: There is none of this name, or none that the scope may see.
        """
        row = repository.find(session, name)
        if row is None or (scope is not None and row.scope not in _visible(scope)):
            raise NotFoundError(
                f"There is no group {name[:80]!r}.", hint="GET /v1/groups lists them."
            )
        return row

    def page(
        self, session: Session, query: PageQuery, scope: Scope = None
    ) -> tuple[Sequence[GroupRow], str]:
        """Return one page and the token of the next.

        Raises:
            InvalidInputError: A bad filter, order or token.
        """
        node = parse(query.filter, repository.SCHEMA) if query.filter else None
        sortable = {"name": GroupRow.name, "created": GroupRow.created}
        return paginate(
            session,
            repository.statement(node, None if scope is None else _visible(scope)),
            query,
            sortable,
            GroupRow.name,
            default="name",
        )

    def members(self, session: Session, name: str, scope: Scope = None) -> Sequence[DeviceRow]:
        """Return the devices within a scope that a group means now, by id.

        Raises:
            NotFoundError: There is no such group.
        """
        group = self.get(session, name, scope)
        return self.devices.matching(session, group.selector, _made_within(group), scope)

    def page_of_members(
        self, session: Session, name: str, query: PageQuery, scope: Scope = None
    ) -> tuple[Sequence[DeviceRow], str]:
        """Return one page of the devices within a scope that a group means now.

        Raises:
            NotFoundError: There is no such group.
            InvalidInputError: A bad filter, order or token.
        """
        group = self.get(session, name, scope)
        selector = self.devices.selector(group.selector)
        return self.devices.page(
            session, query, selector, _made_within(group), scope, in_service=True
        )

    def create(
        self, session: Session, name: str, selector: str, actor: str, scope: Scope = None
    ) -> GroupRow:
        """Name a selector; the group never means a device outside of the scope.

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
        row = GroupRow(
            name=name, selector=selector, scope=describe(scope), created=now, updated=now
        )
        session.add(row)
        session.flush()
        self._tell(session, row, "created", f"Group {name} means {selector}.", actor)
        return row

    def change(
        self, session: Session, row: GroupRow, selector: str, actor: str, scope: Scope = None
    ) -> GroupRow:
        """Give a group another selector; rollouts that have begun keep their devices.

        Raises:
            InvalidInputError: A bad selector.
            ForbiddenError: The group was made for more than the scope (code `outside_scope`).
        """
        _check_own(row, scope)
        self.devices.selector(selector)
        before = _described(row)
        row.selector, row.updated = selector, format_time(self._clock())
        row.revision += 1
        session.add(row)
        self._tell(
            session, row, "changed", f"Group {row.name} now means {selector}.", actor, before
        )
        return row

    def delete(self, session: Session, row: GroupRow, actor: str, scope: Scope = None) -> None:
        """Forget a name; its devices are untouched.

        Raises:
            ForbiddenError: The group was made for more than the scope (code `outside_scope`).
        """
        _check_own(row, scope)
        session.delete(row)
        self._tell(session, row, "deleted", f"Group {row.name} is deleted.", actor, _described(row))

    def _tell(
        self,
        session: Session,
        row: GroupRow,
        what: str,
        message: str,
        actor: str,
        before: dict[str, str] | None = None,
    ) -> None:
        self._events.record(
            session,
            type=f"group.{what}",
            step=Step.TARGET,
            subject=f"groups/{row.name}",
            message=message,
            actor=actor,
            data={"selector": row.selector},
            before=before,
            after=None if what == "deleted" else _described(row),
        )


def _made_within(row: GroupRow) -> Scope:
    return read_scope(Role.VIEWER, row.scope)


def _visible(scope: Node) -> list[str]:
    """Return the scopes of the groups that a scope may see: the fleet's, and its own."""
    parts = scope.nodes if isinstance(scope, Or) else ()
    return ["", *map(describe, (scope, *parts))]


def _check_own(row: GroupRow, scope: Scope) -> None:
    if scope is not None and row.scope not in _visible(scope)[1:]:
        raise ForbiddenError(
            f"Group {row.name} was made for devices outside of your scope too.",
            code="outside_scope",
            hint="Make a group of your own, under another name.",
        )


def _described(row: GroupRow) -> dict[str, str]:
    return {"selector": row.selector, "scope": row.scope}
