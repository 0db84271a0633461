"""What can be wrong with a filter, and where."""

from __future__ import annotations

from edgefleet_shared.errors import InvalidInputError


class FilterError(InvalidInputError):
    """A filter cannot be used.

    Args:
        position: Offset of the first character that does not fit, counted from 0.
        problem: What is wrong there, without a capital letter or a full stop.
        hint: What to write instead.
    """

    default_code = "invalid_filter"

    def __init__(self, position: int, problem: str, *, hint: str = "") -> None:
        super().__init__(f"The filter fails at character {position + 1}: {problem}.", hint=hint)
        self.position = position
