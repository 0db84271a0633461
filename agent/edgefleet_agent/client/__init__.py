"""Ask the models of this device from an application: numpy in, numpy out.

    from edgefleet_agent.client import Client

    with Client() as client:
        scores = client.infer("digits", {"x": image})["scores"]

`AsyncClient` is the same for asyncio. Both need numpy (`edgefleet-agent[client]`) and nothing else.
"""

from __future__ import annotations

from edgefleet_agent.client.aio import AsyncClient
from edgefleet_agent.client.errors import (
    BusyError,
    DeadlineError,
    GatewayGoneError,
    InferenceError,
    InvalidRequestError,
    ModelFailedError,
    UnknownModelError,
)
from edgefleet_agent.client.request import Result
from edgefleet_agent.client.sync import Client

__all__ = [
    "AsyncClient",
    "BusyError",
    "Client",
    "DeadlineError",
    "GatewayGoneError",
    "InferenceError",
    "InvalidRequestError",
    "ModelFailedError",
    "Result",
    "UnknownModelError",
]
