"""One connection to a hub: a client of the SDK, what is asked by it, and how it ended.

The asynchronous client is used because only its calls can be given up: the SDK waits for ever for
the answer to a twin request that a broken connection has swallowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from azure.iot.device import Message, MethodRequest, MethodResponse
from azure.iot.device import exceptions as sdk

from edgefleet_agent.transports.iothub.speech import Answer
from edgefleet_agent.transports.iothub.threads import Watcher
from edgefleet_shared.identifiers import new_id

CONNECT_S = 60.0
ANSWER_S = 30.0
"""A hub that is silent for so long on one thing is left."""
RENEWAL_S = 20.0
"""The SDK gets so long to come back with a new token."""
CLOSE_S = 10.0
DEAD_CLOSE_S = 0.5
_STATUS = re.compile(r"returned status (\d+)")


class BrokenLinkError(Exception):
    """The connection is gone; whether the hub took what was asked last is not known."""


class HubRefusalError(Exception):
    """The hub answered, and took nothing; `status` is HTTP's word for why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the hub answered {status}")
        self.status = status


class Link:
    """One connection.

    Args:
        client: The SDK's, not connected.
        token_s: Seconds after which it renews its token by itself; None: it has none.
        on_patch: Told of each patch of desired properties.
        on_method: Answers direct methods.
        on_renewed: The SDK was away for a moment: patches may have passed us by.

    Everything happens in the loop in which it is made.
    """

    def __init__(
        self,
        client: Any,
        token_s: float | None,
        on_patch: Callable[[Mapping[str, Any]], None],
        on_method: Callable[[str, object], Answer],
        on_renewed: Callable[[], None],
    ) -> None:
        self._client, self._token_s = client, token_s
        self._on_patch, self._on_method, self._on_renewed = on_patch, on_method, on_renewed
        self._loop = asyncio.get_running_loop()
        self._renews_at = time.time() + token_s if token_s is not None else None
        self._asked: set[asyncio.Future[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._standing = self._away = False
        self._watcher = Watcher(self._in_loop(self._die))
        self._close_s = CLOSE_S
        self.broken = asyncio.Event()
        self.reason = self.distrust = ""

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokenLinkError: No; `reason` says why, `distrust` if it is for lack of trust.
        """
        self._client.on_connection_state_change = self._in_loop(self._state_changed)
        self._watcher.open()
        await self._race(self._client.connect, CONNECT_S)
        self._watcher.settled()
        self._standing = True
        self._state_changed()

    async def listen(self) -> None:
        """Subscribe to patches and methods, after a first `twin()` and before the one that counts.

        An earlier handler makes the SDK ask for the twin before it can hear the answer, and
        everything that is changed while we are away would then be lost.

        Raises:
            BrokenLinkError: The hub has not granted it.
        """
        await self._race(lambda: asyncio.to_thread(self._listen), CONNECT_S)

    async def twin(self) -> dict[str, Any]:
        """Return the whole twin.

        Raises:
            BrokenLinkError: The connection is gone.
            HubRefusalError: The hub does not give it.
        """
        found: dict[str, Any] = await self._ask(self._client.get_twin)
        return found

    async def report(self, patch: dict[str, Any]) -> None:
        """Patch the reported properties.

        Raises:
            BrokenLinkError: The connection is gone.
            HubRefusalError: The hub has not taken it.
        """
        await self._ask(lambda: self._client.patch_twin_reported_properties(patch))

    async def send(self, payload: bytes, properties: Mapping[str, str]) -> None:
        """Send a message; return once the hub holds it.

        Raises:
            BrokenLinkError: The connection is gone.
        """
        new: Any = Message  # it carries no annotations
        message = new(
            payload, message_id=new_id(), content_encoding="utf-8", content_type="application/json"
        )
        message.custom_properties.update(properties)
        await self._race(lambda: self._client.send_message(message), 2 * ANSWER_S)

    def leave(self, why: str) -> None:
        """End the connection as if it had broken."""
        self.reason = self.reason or why
        self.broken.set()

    async def close(self) -> None:
        """Let go of the client and of everything that waits."""
        self.leave("closed")
        self._watcher.close()
        for task in list(self._tasks):
            task.cancel()
        for _ in range(2):  # if the first finds the connection half broken, it stops half-way
            try:
                await asyncio.wait_for(self._client.shutdown(), self._close_s)
            except (sdk.ClientError, TimeoutError):
                continue
            return

    def _die(self, why: str) -> None:
        """The SDK's network thread is dead, and so nobody will tell it that it is disconnected."""
        self._close_s = DEAD_CLOSE_S
        self.leave(why)

    def _in_loop(self, act: Callable[..., None]) -> Callable[..., None]:
        """Return a handler for the SDK's threads."""

        def handler(*given: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(act, *given)

        return handler

    def _listen(self) -> None:
        """Subscribe; blocks until the hub has granted it."""
        self._client.on_twin_desired_properties_patch_received = self._in_loop(self._on_patch)
        self._client.on_method_request_received = self._in_loop(self._method)

    def _method(self, request: MethodRequest) -> None:
        said = self._on_method(request.name, request.payload)
        response = MethodResponse.create_from_method_request(request, said.status, said.payload)
        self._spawn(self._race(lambda: self._client.send_method_response(response), ANSWER_S))

    def _spawn(self, work: Awaitable[Any]) -> None:
        async def run() -> None:
            with contextlib.suppress(BrokenLinkError, HubRefusalError):
                await work

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _state_changed(self) -> None:
        """The SDK says that it is connected, or no more."""
        if not self._standing or self.broken.is_set():
            return
        if self._client.connected:
            if self._away:
                self._come_back()
            return
        renewing = self._renews_at is not None and time.time() >= self._renews_at - 1
        if not renewing:
            self.leave("the connection broke")
        elif not self._away:
            self._away = True
            self._watcher.open()
            self._spawn(self._await_renewal())

    def _come_back(self) -> None:
        assert self._token_s is not None
        self._away = False
        self._watcher.settled()
        self._renews_at = time.time() + self._token_s
        for asked in list(self._asked):
            asked.cancel()  # whose answer went to the old connection; it is asked again
        self._on_renewed()

    async def _await_renewal(self) -> None:
        await asyncio.sleep(RENEWAL_S)
        if self._away:
            self.leave("the connection broke while the token was renewed")

    async def _ask(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Ask what may be asked twice: again if the token's renewal came between."""
        while True:
            asked = asyncio.ensure_future(act())
            with self._noted(asked):
                await self._first(asked, ANSWER_S)
            if asked.cancelled() and not self.broken.is_set():
                continue
            return self._result(asked)

    @contextlib.contextmanager
    def _noted(self, asked: asyncio.Future[Any]) -> Iterator[None]:
        self._asked.add(asked)
        try:
            yield
        finally:
            self._asked.discard(asked)

    async def _race(self, act: Callable[[], Awaitable[Any]], seconds: float) -> Any:
        asked = asyncio.ensure_future(act())
        await self._first(asked, seconds)
        return self._result(asked)

    async def _first(self, asked: asyncio.Future[Any], seconds: float) -> None:
        """Wait for an answer, for the end of the connection, or for so long."""
        gone = asyncio.ensure_future(self.broken.wait())
        try:
            await asyncio.wait({asked, gone}, timeout=seconds, return_when="FIRST_COMPLETED")
            if not asked.done():
                self.leave("the hub does not answer")
        finally:
            gone.cancel()
            asked.cancel()

    def _result(self, asked: asyncio.Future[Any]) -> Any:
        if not asked.done() or asked.cancelled():
            raise BrokenLinkError(self.reason)
        error = asked.exception()
        if error is None:
            return asked.result()
        if found := _STATUS.search(told(error)):
            raise HubRefusalError(int(found[1])) from error
        if not self.broken.is_set():
            self.leave(told(error))
            if distrusted(error):
                self.distrust = self.reason
        raise BrokenLinkError(self.reason) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def told(error: BaseException) -> str:
    """Return what the SDK says, from its outermost word to the cause."""
    words = [str(one) or type(one).__name__ for one in _chain(error)]
    return ": ".join(dict.fromkeys(word.rstrip(".") for word in words))


def distrusted(error: BaseException) -> bool:
    """Return whether the hub does not take who we are, or we not who it is."""
    return any(
        isinstance(one, sdk.CredentialError | ssl.SSLCertVerificationError)
        or (isinstance(one, ssl.SSLError) and "ALERT" in str(one))
        for one in _chain(error)
    )
