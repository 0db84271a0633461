"""Who may say and hear what, by the name in its certificate. Pure.

mosquitto reads the same rules from the file that `mosquitto.acl` writes; amqtt asks here.
"""

from __future__ import annotations

from collections.abc import Collection

from edgefleet_shared import topics
from edgefleet_shared.identifiers import MANAGER, NAME, is_reserved

EMBEDDED_MANAGERS = 2
"""The embedded broker knows a second one, for whoever must look at it without ending the first."""


def managers(count: int) -> tuple[str, ...]:
    """Return the names of that many fleet managers."""
    return (MANAGER, *(f"{MANAGER}-{number}" for number in range(2, count + 1)))


class Acl:
    """The rules for a set of fleet managers and for everybody else, who is a device.

    Args:
        all_powerful: Names that read and write everything of the fleet.
    """

    def __init__(self, all_powerful: Collection[str]) -> None:
        self._managers = frozenset(all_powerful)

    def may_write(self, name: str, topic: str) -> bool:
        """Return whether `name` may publish on a topic, by a will too."""
        if "#" in topic or "+" in topic:
            return False
        return any(_within(topic, pattern) for pattern in self._patterns(name, "write"))

    def may_read(self, name: str, topic: str) -> bool:
        """Return whether `name` may hear a topic, or all that a filter means."""
        return any(_within(topic, pattern) for pattern in self._patterns(name, "read"))

    def _patterns(self, name: str, access: str) -> list[str]:
        if name in self._managers:
            return [f"{topics.ROOT}/#"]
        if not NAME.fullmatch(name) or is_reserved(name):
            return []
        rules = topics.acl_patterns()
        return [pattern.replace("%u", name) for word, pattern in rules if word == access]


def _within(wanted: str, pattern: str) -> bool:
    """Return whether `wanted` means nothing that `pattern`, which ends in `#`, does not mean."""
    fixed = pattern.split("/")[:-1]
    return wanted.split("/")[: len(fixed)] == fixed
