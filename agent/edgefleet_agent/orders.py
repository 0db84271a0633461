"""What an assignment means for the slots that it does not name. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from edgefleet_shared.messages import Assignment, SlotAssignment

WhenEmpty = Literal["stop", "keep"]


def slots_of(
    assignment: Assignment, here: Iterable[str], when_empty: WhenEmpty
) -> dict[str, SlotAssignment]:
    """Return what every slot should do now; a slot that is missing is left as it is.

    Args:
        assignment: Verified, and this device's own.
        here: The slots that the device has.
        when_empty: Whether an assignment that names no slot at all ends them. The fleet manager
            sends none by mistake: for a device it knows no slot of, it signs nothing.
    """
    if assignment.slots or when_empty == "keep":
        return dict(assignment.slots)
    return {name: _stop(name, assignment.counter) for name in here}


def _stop(name: str, counter: int) -> SlotAssignment:
    # The same order by the same name, so that it is obeyed once, restarts or not.
    return SlotAssignment("stop", f"empty-{counter}", name, "", "", 0, 0)
