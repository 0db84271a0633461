"""What the fleet manager refuses, by blame; `http_errors` alone knows the status codes.

EdgeFleetError
├── InvalidInputError
│   ├── NotFoundError          no such resource
│   ├── ConflictError          it exists already, or its state does not allow this
│   ├── PreconditionError      If-Match is missing or stale
│   ├── RangeError             the bytes asked for are not there
│   └── TooLargeError          more than the server takes
├── UnauthenticatedError       nobody, or somebody who cannot prove it
├── TooManyAttemptsError       somebody who could not prove it too often
└── ForbiddenError             somebody who may not
"""

from __future__ import annotations

from edgefleet_shared.errors import EdgeFleetError, InvalidInputError


class NotFoundError(InvalidInputError):
    """There is no such resource."""

    default_code = "not_found"


class ConflictError(InvalidInputError):
    """It exists already, or its present state does not allow this."""

    default_code = "conflict"


class PreconditionError(InvalidInputError):
    """`If-Match` is missing (code `precondition_required`) or stale (`precondition_failed`)."""

    default_code = "precondition_failed"


class RangeError(InvalidInputError):
    """The bytes asked for do not exist."""

    default_code = "range_not_satisfiable"


class TooLargeError(InvalidInputError):
    """More than the server takes."""

    default_code = "too_large"


class UnauthenticatedError(EdgeFleetError):
    """The caller did not prove who it is."""

    default_code = "unauthenticated"


class TooManyAttemptsError(EdgeFleetError):
    """The caller failed too often to prove who it is.

    Args:
        wait_s: Seconds until it may try again; `headers` say it to clients.
    """

    default_code = "too_many_attempts"

    def __init__(self, wait_s: int) -> None:
        super().__init__(
            "Too many attempts to authenticate have failed from here.",
            hint=f"Correct the credentials; the next attempt is looked at in {wait_s} s.",
        )
        self.headers = {"Retry-After": str(wait_s)}


class ForbiddenError(EdgeFleetError):
    """The caller is known and may not do this."""

    default_code = "forbidden"
