"""agentd's end: starts the keeper when a container is first needed, and asks it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec

from edgefleet_agent.containers import messages
from edgefleet_agent.containers.messages import Ended
from edgefleet_shared.errors import EdgeFleetError, IncompatibleError, TrustError, UnavailableError

CALL_S = 120.0
LOOK_S = 0.2
"""How often a pull looks whether it shall stop."""

_TRUST = frozenset({"image_differs"})


__all__ = ["Ended", "KeeperClient", "Settings"]


class Settings(msgspec.Struct, frozen=True):
    """What the keeper is told as it starts; `registries` maps a host to user name and password."""

    docker: str
    fleet: str
    device: str
    registries: dict[str, tuple[str, str]] = {}


class _Waiting:
    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.done = threading.Event()
        self.answer: messages.Done | None = None
        self.progress = progress


class KeeperClient:
    """Asks the keeper; safe in several threads.

    Args:
        settings: What it is told.

    Attributes:
        on_ended: Called from the reading thread when a container has ended by itself.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.on_ended: Callable[[Ended], None] = lambda _: None
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def pull(
        self, image: str, stop: threading.Event, progress: Callable[[int, int], None]
    ) -> messages.Done | None:
        """Bring an image; None if `stop` was set first. Raises as `call`."""
        number = next(self._ids)
        waiting = self._ask(messages.Pull(number, image), progress)
        while not waiting.done.wait(LOOK_S):
            if stop.is_set():
                with contextlib.suppress(OSError):
                    self._send(messages.Cancel(next(self._ids), number))
                return None
        return self._answered(waiting)

    def call(self, make: Callable[[int], messages.Request]) -> messages.Done:
        """Send a request and return its answer.

        Raises:
            IncompatibleError: docker cannot be used here (`unsupported_runtime`).
            TrustError: dockerd holds another image than the signed one.
            UnavailableError: It cannot be done now; the code says what.
        """
        waiting = self._ask(make(next(self._ids)), None)
        if not waiting.done.wait(CALL_S):
            self.close()
            raise UnavailableError("dockerd does not answer in time.", code="container_failed")
        return self._answered(waiting)

    def close(self) -> None:
        """End the keeper; containers stay."""
        with self._lock:
            sock, self._socket = self._socket, None
            process, self._process = self._process, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if process is not None:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ask(
        self, request: messages.Request, progress: Callable[[int, int], None] | None
    ) -> _Waiting:
        waiting = _Waiting(progress)
        with self._lock:
            if self._socket is None:
                self._start()
            self._waiting[request.id] = waiting
        try:
            self._send(request)
        except OSError as error:
            raise UnavailableError(f"The keeper is gone: {error}.", code="container_failed") from (
                error
            )
        return waiting

    def _send(self, message: messages.Message) -> None:
        sock = self._socket
        if sock is None:
            raise BrokenPipeError("no keeper is running")
        with self._sending:
            messages.send(sock, message)

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.send(msgspec.msgpack.encode(self._settings))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __package__, "--fd", str(theirs.fileno())],
                env={k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd=os.sep,
            )
        self._socket = ours
        threading.Thread(target=self._read, args=(ours,), name="keeper", daemon=True).start()

    def _read(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, msgspec.DecodeError):
            while (message := messages.receive(sock)) is not None:
                self._take(message)
        with self._lock:
            if self._socket is sock:
                self._socket = None
            waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.done.set()

    def _take(self, message: messages.Message) -> None:
        if isinstance(message, messages.Ended):
            self.on_ended(message)
            return
        waiting = self._waiting.get(message.id)
        if waiting is None:
            return
        if isinstance(message, messages.Progress) and waiting.progress:
            waiting.progress(message.done, message.total)
        elif isinstance(message, messages.Done):
            waiting.answer = message
            with self._lock:
                self._waiting.pop(message.id, None)
            waiting.done.set()

    @staticmethod
    def _answered(waiting: _Waiting) -> messages.Done:
        answer = waiting.answer
        if answer is None:
            raise UnavailableError("The keeper ended before it answered.", code="container_failed")
        if answer.ok:
            return answer
        raise _error(answer)


def _error(answer: messages.Done) -> EdgeFleetError:
    if answer.code == "unsupported_runtime":
        return IncompatibleError(answer.message, code=answer.code, hint=answer.hint)
    kind = TrustError if answer.code in _TRUST else UnavailableError
    return kind(answer.message, code=answer.code, hint=answer.hint)
