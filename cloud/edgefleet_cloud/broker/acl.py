"""Who may say and hear what, by the name in its certificate. Pure.

mosquitto reads the same rules from the file that `mosquitto.acl` writes; amqtt asks here.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from edgefleet_shared import topics
from edgefleet_shared.identifiers import NAME

MANAGER = "fleet-manager"
"""Common name of the fleet manager's certificate; further processes are `fleet-manager-2` and on,
because one certificate is one MQTT client."""
PROBE = "broker-probe"
"""Common name with which the fleet manager asks whether a broker answers; it may do nothing."""
EMBEDDED_MANAGERS = 2
"""The embedded broker knows a second one, for whoever must look at it without ending the first."""

_OURS = re.compile(rf"{MANAGER}(-[0-9]+)?|{PROBE}")


def managers(count: int) -> tuple[str, ...]:
    """Return the names of that many fleet managers."""
    return (MANAGER, *(f"{MANAGER}-{number}" for number in range(2, count + 1)))


def is_ours(name: str) -> bool:
    """Return whether a name is the fleet manager's own, so that no device may have it."""
    return bool(_OURS.fullmatch(name))


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
        if not NAME.fullmatch(name) or is_ours(name):
            return []
        rules = topics.acl_patterns()
        return [pattern.replace("%u", name) for word, pattern in rules if word == access]


def _within(wanted: str, pattern: str) -> bool:
    """Return whether `wanted` means nothing that `pattern`, which ends in `#`, does not mean."""
    fixed = pattern.split("/")[:-1]
    return wanted.split("/")[: len(fixed)] == fixed
