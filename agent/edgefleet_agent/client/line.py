"""One connection of an asynchronous client: what was asked on it, and what comes back."""

from __future__ import annotations

import asyncio
import socket

from edgefleet_agent.client.errors import GatewayGoneError, InferenceError
from edgefleet_agent.client.memory import Blocks
from edgefleet_agent.client.request import Asked, Requests, Result, Send
from edgefleet_agent.ipc import fast
from edgefleet_agent.ipc.fast_inbox import Frame, Inbox
from edgefleet_shared.errors import InvalidInputError

_LONGEST = 2**30


class Line:
    """Sends frames, and gives each answer to whom it is for.

    Args:
        sock: Connected and non-blocking, from now on this object's.
        requests: Reads answers.
        blocks: Shared memory, offered anew on this connection.
    """

    def __init__(self, sock: socket.socket, requests: Requests, blocks: Blocks) -> None:
        self._sock = sock
        self._requests = requests
        self._blocks = blocks
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(_LONGEST)
        self._waiting: dict[int, tuple[Asked, asyncio.Future[Result]]] = {}
        self._offers: dict[int, Asked] = {}
        self._last = False
        self._hold: tuple[int, asyncio.Future[None]] | None = None
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(sock, self._on_readable)

    @property
    def closed(self) -> bool:
        """Whether a new one is needed."""
        return self._sock.fileno() < 0

    async def greet(self) -> None:
        """Say hello, and wait for the welcome.

        Raises:
            InferenceError: There is none.
        """
        try:
            await self.send(Send([self._requests.hello()]), [False])
            await self._welcome
        except OSError as error:
            problem = GatewayGoneError(f"The gateway went away: {error.strerror}.")
            self.close(problem)
            raise problem from error
        except BaseException:
            self.close(GatewayGoneError("The gateway did not say welcome."))
            raise

    def expect(self, asked: Asked) -> asyncio.Future[Result]:
        """Return where the answer to a request will be; an answer that nobody wants is dropped."""
        answer: asyncio.Future[Result] = self._loop.create_future()
        self._waiting[asked.number] = asked, answer
        for number in asked.offers:
            self._offers[number] = asked
        return answer

    async def send(self, send: Send, sent: list[bool]) -> None:
        """Send a frame; `sent` tells whether any of it went.

        Raises:
            OSError: The gateway is gone.
        """
        parts, fd = send
        while True:
            try:
                if fd >= 0:
                    count = socket.send_fds(self._sock, parts, [fd])
                else:
                    count = self._sock.sendmsg(parts)
                break
            except BlockingIOError:
                await self._writable()
        sent[0] = True
        if count < sum(map(len, parts)):
            await self._loop.sock_sendall(self._sock, memoryview(b"".join(parts))[count:])

    async def held(self, number: int) -> None:
        """Wait for the answer to HOLD.

        Raises:
            GatewayGoneError: The connection broke.
        """
        self._hold = number, self._loop.create_future()
        await self._hold[1]

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()

        def go_on() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_writer(self._sock, go_on)
        try:
            await ready
        finally:
            if not self.closed:
                self._loop.remove_writer(self._sock)

    def _on_readable(self) -> None:
        try:
            count = self._sock.recv_into(self._inbox.space())
            if not count:
                self.close(GatewayGoneError("The gateway went away before it answered."))
                return
            self._inbox.wrote(count)
            while not self.closed and (frame := self._inbox.next()) is not None:
                self._take(frame)
            if self._last:
                self.close_when_idle()
        except BlockingIOError:
            return
        except OSError as error:
            self.close(GatewayGoneError(f"The gateway went away: {error.strerror}."))
        except InvalidInputError as error:
            self.close(GatewayGoneError(f"What answers is no gateway: {error}"))

    def _take(self, frame: Frame) -> None:
        prefix, body = frame
        number = prefix[2]
        if not self._welcome.done():
            try:
                self._requests.welcomed(prefix, body)
                self._welcome.set_result(None)
            except InferenceError as error:
                self._welcome.set_exception(error)
            return
        if self._hold is not None and number == self._hold[0]:
            hold, self._hold = self._hold[1], None
            if not hold.done():
                hold.set_result(None)
            return
        if number in self._offers:
            asked = self._offers.pop(number)
            if prefix[0] == fast.REFUSED:
                self._requests.slot_refused(asked.offers[number])
            return
        if number not in self._waiting:
            if prefix[0] == fast.REFUSED and not number:
                raise InvalidInputError(fast.decode_refusal(bytes(body)).message)
            return
        asked, answer = self._waiting.pop(number)
        try:
            result = self._requests.answered(asked, prefix, bytearray(body))
        except InferenceError as error:
            if not answer.done():
                answer.set_exception(error)
            return
        if not answer.done():
            answer.set_result(result)

    def close_when_idle(self) -> None:
        """Close once every answer that is due has come."""
        self._last = True
        if not self._waiting:
            self.close(GatewayGoneError("The connection was given up."))

    def close(self, problem: InferenceError) -> None:
        """End the connection; whoever waits gets `problem`."""
        if self.closed:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        waiting, self._waiting = self._waiting, {}
        for asked, answer in waiting.values():
            asked.give_back(spoilt=True, blocks=self._blocks)
            if not answer.done():
                answer.set_exception(problem)
                answer.exception()  # who waits gets it; who has gone leaves no complaint
        for one in (self._welcome, self._hold[1] if self._hold else self._welcome):
            if not one.done():
                one.set_exception(problem)
                one.exception()
