"""The client for asyncio: many requests at once over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgefleet_agent.client import documents
from edgefleet_agent.client.errors import DeadlineError, GatewayGoneError, InvalidRequestError
from edgefleet_agent.client.line import Line
from edgefleet_agent.client.memory import Blocks
from edgefleet_agent.client.request import Requests, Result
from edgefleet_agent.client.sync import AGAIN_S, GRACE_S, Retry
from edgefleet_agent.ipc import fast


class AsyncClient:
    """Asks the models of this device; arguments and errors as of `Client`.

    It belongs to the event loop of its first request. Up to `fast.OPEN_MAX` requests are under way
    at once; more wait for their turn.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float = 30.0,
        retry: Retry = "unsent",
    ) -> None:
        self._path = documents.socket_path(path)
        self._timeout_s = timeout_s
        self._retry = documents.retry_of(retry)
        self._blocks = Blocks()
        self._requests = Requests(self._blocks)
        self._turn = asyncio.Semaphore(fast.OPEN_MAX)
        self._sending = asyncio.Lock()
        self._line: Line | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and give up shared memory; arrays that were returned stay valid."""
        if self._line is not None:
            self._line.close(GatewayGoneError("The client was closed."))
            self._line = None
        self._blocks.close()

    def buffer(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Return an array of zeros in shared memory: as an input, it or a part is not copied.

        Raises:
            MemoryError: Too many buffers, or bytes in them, are in use.
        """
        return self._blocks.buffer(tuple(shape), dtype)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        raw: bool = False,
    ) -> Result:
        """Run a model once; as `Client.infer`.

        Raises:
            InferenceError: One of its kinds, see `client.errors`.
        """
        timeout = self._timeout_s if timeout_s is None else timeout_s
        end = time.monotonic() + timeout
        async with self._turn:
            again = True
            inline = moved = False
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise DeadlineError(f"No answer within {timeout} s.")
                sent = [False]
                try:
                    async with asyncio.timeout(left + GRACE_S):
                        which = version, raw
                        work = self._ask(model, inputs, which, outputs, left, sent)
                        # Whoever gives up while it is sent must not leave half a frame behind.
                        answer = await asyncio.shield(asyncio.ensure_future(work))
                        return await answer
                except TimeoutError as error:
                    self._hang_up()
                    raise DeadlineError("The gateway does not answer.") from error
                except GatewayGoneError:
                    if not again or (sent[0] and self._retry != "always"):
                        raise
                    again = self._retry == "always"
                    await asyncio.sleep(AGAIN_S if again else 0.0)
                except InvalidRequestError as error:
                    if error.code == "other_model" and not moved:
                        moved = self._move()
                    elif error.code != "bad_slot" or inline:
                        raise
                    else:
                        inline = True  # the gateway takes no more memory of ours: send it whole

    async def _ask(
        self,
        model: str,
        inputs: Mapping[str, Any],
        which: tuple[str, bool],
        outputs: Sequence[str] | None,
        left: float,
        sent: list[bool],
    ) -> asyncio.Future[Result]:
        """Send a request; frames of two requests never mix, and slots are known before use."""
        async with self._sending:
            line = await self._connected()
            asked = self._requests.make(model, inputs, which, outputs, int(left * 1e6))
            answer = line.expect(asked)
            try:
                for send in asked.sends:
                    await line.send(send, sent)
                    if asked.hold and send is asked.sends[0]:
                        await line.held(asked.hold)
            except OSError as error:
                problem = documents.gone(self._path, error)
                line.close(problem)
                answer.exception()  # it is raised here
                raise problem from error
            except BaseException:  # half a frame may have gone: nobody can go on from there
                line.close(GatewayGoneError("A request was cut off while it was being sent."))
                raise
            finally:
                asked.close()
            return answer

    async def _connected(self) -> Line:
        if self._line is None or self._line.closed:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, self._path)
            except OSError as error:
                sock.close()
                raise documents.gone(self._path, error) from error
            self._line = Line(sock, self._requests, self._blocks)
            await self._line.greet()
        return self._line

    def _move(self) -> bool:
        """Go on with a connection for all models; the old one ends once it has answered."""
        if not self._requests.stays:
            self._requests.stays = True
            if self._line is not None:
                self._line.close_when_idle()
                self._line = None
        return True

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close(GatewayGoneError("The gateway did not answer another request."))

    # ------------------------------------------------------------------- about models

    async def models(self) -> list[dict[str, Any]]:
        """Return every loaded version: name, version, state, reason.

        Raises:
            GatewayGoneError: Nobody answers.
        """
        found: list[dict[str, Any]]
        found = documents.document(await self._get("/v2/repository/index"))
        return found

    async def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """Return a model's versions, platform, inputs and outputs, as the protocol has them.

        Raises:
            UnknownModelError: There is no such model, or version.
            GatewayGoneError: Nobody answers.
        """
        found: dict[str, Any]
        found = documents.document(await self._get(documents.model_path(model, version)))
        return found

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a model, or any model at all, can be asked; False without a gateway."""
        try:
            return documents.read(await self._get(documents.ready_path(model, version)))[0] == 200
        except GatewayGoneError:
            return False

    async def _get(self, path: str) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._path)
                with contextlib.closing(writer):
                    writer.write(documents.get(path))
                    return await reader.read()
        except OSError as error:  # TimeoutError is one
            raise documents.gone(self._path, error) from error
