"""The service: each call asks the gateway, and errors become gRPC's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
import msgspec
from google.protobuf import json_format  # type: ignore[import-untyped]

from edgefleet_agent.grpc_door.messages import MESSAGES, SERVICE
from edgefleet_agent.grpc_door.translate import path_of, plain, to_grpc, to_rest
from edgefleet_agent.grpc_door.upstream import Reply, Upstream
from edgefleet_shared.errors import InvalidInputError, UnavailableError

_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_FULL: Final = frozenset({"queue_full", "busy"})
"""Codes of 503 that mean: too much at once, try again later."""

_LONGEST_MS: Final = 10**9 - 1
"""The longest timeout that the gateway's header can say."""

Handler = Callable[[Any, Any], Awaitable[Any]]


class Service:
    """Answers the eight calls that `inference.proto` lists.

    Args:
        upstream: Where they go.
        patience_s: How long a call's message may take to come.
    """

    def __init__(self, upstream: Upstream, patience_s: float) -> None:
        self._upstream = upstream
        self._patience_s = patience_s

    def handlers(self) -> Any:
        """Return what a server registers."""
        calls: dict[str, Handler] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }
        methods = {
            name: grpc.stream_unary_rpc_method_handler(
                self._one(call),
                request_deserializer=MESSAGES[f"{name}Request"].FromString,
                response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
            )
            for name, call in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _one(self, call: Handler) -> Handler:
        """Return a call that waits for its one message no longer than it may.

        On the wire it is as if it took no stream; but who takes no stream is called only once its
        message is there, and until then nobody can end the call, which counts.
        """

        async def answer(messages: Any, context: Any) -> Any:
            try:
                async with asyncio.timeout(self._patience_s):
                    message = await anext(messages, None)
            except TimeoutError:
                await context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "The message did not come whole in time."
                )
            if message is None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call has no message.")
            return await call(message, context)

        return answer

    async def _get(self, path: str, context: Any) -> Reply:
        try:
            return await self._upstream.ask("GET", path)
        except UnavailableError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise  # abort does not return

    async def _document(self, path: str, context: Any) -> Any:
        reply = await self._get(path, context)
        if reply.status != 200:
            await _refuse(reply, context)
        return msgspec.json.decode(reply.body)

    async def _server_live(self, _: Any, context: Any) -> Any:
        reply = await self._get("/v2/health/live", context)
        return MESSAGES["ServerLiveResponse"](live=reply.status == 200)

    async def _server_ready(self, _: Any, context: Any) -> Any:
        reply = await self._get("/v2/health/ready", context)
        return MESSAGES["ServerReadyResponse"](ready=reply.status == 200)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        reply = await self._get(path_of(request.name, request.version, "ready"), context)
        return MESSAGES["ModelReadyResponse"](ready=reply.status == 200)

    async def _server_metadata(self, _: Any, context: Any) -> Any:
        return _parse(await self._document("/v2", context), "ServerMetadataResponse")

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        found = await self._document(path_of(request.name, request.version), context)
        return _parse(found, "ModelMetadataResponse")

    async def _model_statistics(self, request: Any, context: Any) -> Any:
        path = "/v2/models/stats"
        if request.name:
            path = path_of(request.name, request.version, "stats")
        return _parse(await self._document(path, context), "ModelStatisticsResponse")

    async def _repository_index(self, request: Any, context: Any) -> Any:
        found = await self._document("/v2/repository/index", context)
        models = [one for one in found if one["state"] == "READY" or not request.ready]
        return _parse({"models": models}, "RepositoryIndexResponse")

    async def _model_infer(self, request: Any, context: Any) -> Any:
        try:
            call = to_rest(request)
        except InvalidInputError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise
        headers: list[tuple[str, int | str]] = [
            ("Inference-Client", _client(context)),
            ("Inference-Header-Content-Length", len(call.head)),
            *_deadline(plain(request.parameters), context.time_remaining()),
        ]
        try:
            reply = await self._upstream.ask("POST", call.path, headers, [call.head, *call.tensors])
        except UnavailableError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise
        if reply.status != 200:
            await _refuse(reply, context)
        length = int(reply.headers.get("inference-header-content-length", len(reply.body)))
        return to_grpc(reply.body, length)


def _client(context: Any) -> str:
    """Return what tells a client from others, for the gateway sees this door's connections."""
    given = dict(context.invocation_metadata() or ()).get("inference-client", "")
    return str(given) or str(context.peer())


def _deadline(parameters: dict[str, Any], remaining_s: float | None) -> list[tuple[str, int]]:
    """Return the header that tells the gateway the nearer of the call's two deadlines."""
    given = [parameters["deadline_ms"]] if "deadline_ms" in parameters else []
    if remaining_s is not None:
        given.append(remaining_s * 1000)
    numbers = [value for value in given if isinstance(value, int | float) and value > 0]
    if not numbers:
        return []
    return [("Inference-Timeout-Ms", max(1, int(min(*numbers, _LONGEST_MS))))]


def _parse(document: Any, name: str) -> Any:
    return json_format.ParseDict(document, MESSAGES[name](), ignore_unknown_fields=True)


async def _refuse(reply: Reply, context: Any) -> NoReturn:
    """End a call as the gateway ended the request; tells when to try again, if it did."""
    problem = msgspec.json.decode(reply.body, type=dict[str, str])
    code = problem.get("code", "")
    status = _CODES.get(reply.status, grpc.StatusCode.UNKNOWN)
    trailing = [("edgefleet-code", code)]
    if code in _FULL:
        status = grpc.StatusCode.RESOURCE_EXHAUSTED
    if after := reply.headers.get("retry-after"):
        trailing.append(("grpc-retry-pushback-ms", str(int(after) * 1000)))
    await context.abort(status, problem.get("error", ""), tuple(trailing))
    raise AssertionError("abort returns nowhere")
