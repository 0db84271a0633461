"""What an assignment means for the slots that it does not name. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from edgefleet_shared.messages import MAX_SLOTS, Assignment, SlotAssignment

WhenEmpty = Literal["stop", "keep"]


def slots_of(
    assignment: Assignment, here: Collection[str], when_empty: WhenEmpty
) -> dict[str, SlotAssignment]:
    """Return what every slot should do now; a slot that is missing is left as it is.

    Args:
        assignment: Verified, and this device's own.
        here: The slots that the device has.
        when_empty: Whether an assignment that names no slot at all ends them. The fleet manager
            sends none by mistake: for a device it knows no slot of, it signs nothing.
    """
    if assignment.slots or when_empty == "keep":
        # To end what never was needs no publisher, and each slot costs a thread and a page of the
        # journal for good: a stolen director's key must not fill either with names.
        room = MAX_SLOTS - len(here)
        unknown = [name for name, slot in assignment.slots.items() if _is_new_stop(slot, here)]
        left_out = set(unknown[max(0, room) :])
        return {name: slot for name, slot in assignment.slots.items() if name not in left_out}
    return {name: _stop(name, assignment.counter) for name in here}


def _is_new_stop(slot: SlotAssignment, here: Collection[str]) -> bool:
    return slot.mode == "stop" and slot.model not in here


def _stop(name: str, counter: int) -> SlotAssignment:
    # The same order by the same name, so that it is obeyed once, restarts or not.
    return SlotAssignment("stop", f"empty-{counter}", name, "", "", 0, 0)
