"""Why an inference failed, split by who has to act.

InferenceError
├── InvalidRequestError   the application: what it sent does not fit the model
├── UnknownModelError     the application or the fleet: no such model, or version, on this device
├── BusyError             nobody: try again after `retry_after_s`
├── DeadlineError         nobody, or a longer timeout
├── ModelFailedError      the publisher: the model failed or crashed on this input
└── GatewayGoneError      the device: nothing answers at the socket
"""

from __future__ import annotations

from edgefleet_agent.ipc.fast import Refusal
from edgefleet_shared.errors import EdgeFleetError


class InferenceError(EdgeFleetError):
    """Root of the tree; `code` is the gateway's."""

    default_code = "inference_failed"


class InvalidRequestError(InferenceError):
    """The request does not fit the model, or the protocol."""

    default_code = "invalid_request"


class UnknownModelError(InferenceError):
    """This device serves no such model or version."""

    default_code = "unknown_model"


class BusyError(InferenceError):
    """It was not taken up; `retry_after_s` says when to try again."""

    default_code = "busy"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.retry_after_s = retry_after_s


class DeadlineError(InferenceError):
    """There was no answer in time."""

    default_code = "deadline"


class ModelFailedError(InferenceError):
    """The model failed on this input."""


class GatewayGoneError(InferenceError):
    """The gateway is not there, or went away before it answered."""

    default_code = "gateway_gone"


def refused(refusal: Refusal) -> InferenceError:
    """Return the error for what the gateway said."""
    status, code, message, retry_after_ms = refusal
    if status == 404:
        return UnknownModelError(message, code=code)
    if status == 503:
        return BusyError(message, code=code, retry_after_s=retry_after_ms / 1000)
    if status == 504:
        return DeadlineError(message, code=code)
    if status >= 500:
        return ModelFailedError(message, code=code)
    return InvalidRequestError(message, code=code)
