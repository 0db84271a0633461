"""One request, answered: decode, run, encode. The relay and lent connections share it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from edgefleet_agent.ipc import frames
from edgefleet_agent.ports import Session
from edgefleet_agent.worker.codec import Codec, Decoded
from edgefleet_agent.worker.fast_codec import Asked, FastCodec
from edgefleet_shared.errors import InvalidInputError

Request = Asked | Decoded


class Answer(NamedTuple):
    """What goes back.

    `status` is one of `frames.STATUSES`, `json_length` as in a frame, `parts` the body's, and
    `spent` the nanoseconds that the model ran.
    """

    status: int
    json_length: int
    parts: list[bytes]
    nonfinite: bool
    spent: int


class Answerer:
    """Answers requests for one loaded model.

    Args:
        session: The bare model, which requests with the parameter `raw` ask.
        door: What the others ask: the same, or with the package's processing around it.
        codec: Reads and writes them.
        fast: The same for the fast path.
    """

    def __init__(self, session: Session, door: Session, codec: Codec, fast: FastCodec) -> None:
        self._session = session
        self._door = door
        self._codec = codec
        self._fast = fast

    def answer(self, body: memoryview, json_length: int, client: int = 0) -> Answer:
        """Answer one request's body; never raises for what a client sent or a model did.

        `client` is that of the fast path, 0 for the others.
        """
        spent = 0
        try:
            request = self.decode(body, json_length, client)
            begun = time.perf_counter_ns()
            found = (self._session if request.raw else self._door).run(request.inputs)
            spent = time.perf_counter_ns() - begun
            return self.encode(request, found, spent)
        except Exception as error:  # noqa: BLE001 - one bad request must not end the worker
            return refusal(error, spent)

    def decode(self, body: memoryview, json_length: int, client: int = 0) -> Request:
        """Return what is asked for; arrays may be views into `body`.

        Raises:
            InvalidInputError: It does not fit the model or the protocol.
        """
        if client:
            return self._fast.decode(body, json_length, client)
        return self._codec.decode(body, json_length)

    def encode(self, request: Request, found: Mapping[str, np.ndarray], spent: int) -> Answer:
        """Return the answer of a run that took `spent` nanoseconds.

        Raises:
            InvalidInputError: The outputs cannot be said as was asked.
        """
        if isinstance(request, Asked):
            json_length, parts, nonfinite = self._fast.encode(request, found)
        else:
            json_length, parts, nonfinite = self._codec.encode(request, found)
        return Answer(200, json_length, parts, nonfinite, spent)


def refusal(error: Exception, spent: int) -> Answer:
    """Return the answer that says what was wrong: the request, or the model with it."""
    if isinstance(error, InvalidInputError | ValueError):
        return Answer(400, frames.NO_JSON, [_problem(error, "invalid_request")], False, spent)
    return Answer(500, frames.NO_JSON, [_problem(error, "inference_failed")], False, spent)


def _problem(error: BaseException, code: str) -> bytes:
    text = str(error) or f"The worker failed: {type(error).__name__}."
    return msgspec.json.encode({"error": text, "code": code})


TOO_LATE = Answer(
    504,
    frames.NO_JSON,
    [msgspec.json.encode({"error": "The deadline passed in the queue.", "code": "deadline"})],
    False,
    0,
)
"""For a request whose deadline passed before its turn came."""
