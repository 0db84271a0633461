"""What can be wrong with a filter, and where."""

from __future__ import annotations

from edgefleet_shared.errors import InvalidInputError


class FilterError(InvalidInputError):
    """A filter cannot be used.

    Attributes:
        position: Offset of the first character that does not fit, counted from 0.
        extra: The same, for the API's problem.
    """

    default_code = "invalid_filter"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", position: int = 0
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.position = position
        self.extra = {"position": position}


def misfit(position: int, problem: str, *, hint: str = "") -> FilterError:
    """Return the error for what is wrong at a position; `problem` is half a sentence."""
    message = f"The filter fails at character {position + 1}: {problem}."
    return FilterError(message, hint=hint, position=position)
