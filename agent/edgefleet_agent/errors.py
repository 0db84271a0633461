"""What can go wrong on the device; the tree is `edgefleet_shared.errors`, here are the leaves."""

from __future__ import annotations

from edgefleet_shared.errors import EdgeFleetError, UnavailableError


class StoreFullError(UnavailableError):
    """The store has no room for a package, even after removing what nobody needs."""

    default_code = "store_full"


class FetchError(UnavailableError):
    """A blob could not be fetched now; what has arrived is kept and resumed."""

    default_code = "fetch_failed"


class ProofError(EdgeFleetError):
    """The gateway could not load or prove a version; `code` is its outcome's."""

    default_code = "load_failed"


class DeploymentError(EdgeFleetError):
    """A deployment cannot go on; `code` is the reason that is reported."""

    default_code = "deployment_failed"


class NeedsDrainError(UnavailableError):
    """No slot of an accelerator is free: one of `holders`, package digests, would have to go."""

    default_code = "needs_drain"

    def __init__(self, message: str, holders: tuple[str, ...]) -> None:
        super().__init__(message)
        self.holders = holders
