"""Who asks, and how far each of their permissions reaches. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edgefleet_cloud.auth.roles import PERMISSIONS, Role, grants
from edgefleet_cloud.errors import ForbiddenError
from edgefleet_cloud.filters import Kind, Node, Schema, parse, render
from edgefleet_cloud.filters.tree import Or

DEVICES = Schema({"id": Kind.TEXT, "hardware": Kind.TEXT}, frozenset({"labels"}))
"""What a scope over devices may speak of: what people set, not what devices say of themselves."""
MODELS = Schema({"model": Kind.TEXT})
"""What a publisher's scope may speak of."""

Scope = Node | None
"""How far a permission reaches: what the filter means, or everything (None)."""


class Binding(NamedTuple):
    """A role, and the scope in which it is held."""

    role: Role
    scope: Scope = None


@dataclass(frozen=True)
class Caller:
    """Somebody who has proved who they are.

    Attributes:
        actor: As events name them, for example `token/ci` or `oidc/anna`.
        bindings: What they may do.
        device: Whether it is a device of the fleet, which holds no role.
        expires: Until when the proof holds, as `times.format_time` has it; '' is for ever.
    """

    actor: str
    bindings: tuple[Binding, ...]
    device: bool = False
    expires: str = ""

    def reach(self, permission: str) -> Scope:
        """Return how far a permission of this caller reaches.

        Raises:
            ForbiddenError: They do not hold it at all.
        """
        held = [
            binding.scope
            for binding in self.bindings
            if grants(binding.role, permission, scoped=binding.scope is not None)
        ]
        if not held:
            raise ForbiddenError(
                f"{self.actor} may not do this: it needs the permission {permission}.",
                hint="An admin can make a token of another role; docs/reference.md lists them.",
            )
        nodes = tuple(dict.fromkeys(scope for scope in held if scope is not None))
        if len(nodes) < len(set(held)):  # one of them is the whole fleet
            return None
        return nodes[0] if len(nodes) == 1 else Or(nodes)

    def may_give(self, binding: Binding) -> bool:
        """Return whether a binding holds nothing that this caller does not hold as far."""
        scoped = binding.scope is not None
        for permission in PERMISSIONS[binding.role]:
            if not grants(binding.role, permission, scoped=scoped):
                continue
            try:
                reach = self.reach(permission)
            except ForbiddenError:
                return False
            if reach is not None and reach != binding.scope:
                return False
        return True


def read_scope(role: Role, text: str) -> Scope:
    """Return the scope that a text means; the empty one means everything.

    Raises:
        FilterError: It is no filter over devices or, for a publisher, over `model`.
    """
    return parse(text, MODELS if role is Role.PUBLISHER else DEVICES) if text else None


def describe(scope: Scope) -> str:
    """Return a scope in its one spelling; '' is everything."""
    return render(scope) if scope else ""
