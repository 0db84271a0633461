"""What the operator sees; the tree is `edgefleet_shared.errors`, here are the leaves.

Exit codes: 0 done, 1 the operation failed, 2 bad input or usage, 3 the server cannot be reached.
"""

from __future__ import annotations

from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError


class LintError(InvalidInputError):
    """A model that must not be published; names the tensor or the node."""

    default_code = "lint"


class RefusedError(EdgeFleetError):
    """The fleet manager answered, and its answer is no."""

    default_code = "refused"


class NotFoundError(RefusedError):
    """The fleet manager does not have what was asked for."""

    default_code = "not_found"


class UnreachableError(UnavailableError):
    """No fleet manager answers at that address, or it is overloaded."""

    default_code = "server_unreachable"


def exit_code(error: EdgeFleetError) -> int:
    """Return the exit code that says whose fault it is."""
    if isinstance(error, UnreachableError):
        return 3
    return 2 if isinstance(error, InvalidInputError) else 1
