"""Every error that edgefleet raises on purpose, split by who has to act.

EdgeFleetError
├── InvalidInputError    what was given cannot be used; the hint says what to give instead
├── TrustError           signed data does not hold; somebody may be attacking
├── IncompatibleError    well signed, but not for this device, runtime or accelerator
└── UnavailableError     a part that is needed does not answer; trying again later may help
"""

from __future__ import annotations


class EdgeFleetError(Exception):
    """Root of the tree.

    Args:
        message: One sentence that says what is wrong.
        code: Stable snake_case identifier, for machines.
        hint: What to do next; empty where there is nothing to do.
    """

    default_code = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidInputError(EdgeFleetError):
    """What was given cannot be used."""

    default_code = "invalid_input"


class TrustError(EdgeFleetError):
    """Signed data does not hold: refuse it, keep serving, say why."""

    default_code = "untrusted"


class IncompatibleError(EdgeFleetError):
    """The package is genuine but cannot run here."""

    default_code = "incompatible"


class UnavailableError(EdgeFleetError):
    """A needed part does not answer now."""

    default_code = "unavailable"
