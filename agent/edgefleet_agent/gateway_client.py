"""agentd's end of the control socket: requests with deadlines, events as they come."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from edgefleet_agent.ipc import control, packets
from edgefleet_shared.errors import UnavailableError

R = TypeVar("R", bound=control.Reply)
CALL_S = 20.0
CONNECT_S = 5.0
STOP_LOOK_S = 0.05
PREPARE_LOADS = 4
"""Preparing loads several times, and slowly."""


class GatewayLostError(UnavailableError):
    """The gateway went away, or does not answer in time; what it was asked may have happened."""

    default_code = "gateway_lost"


class GatewayRefusedError(UnavailableError):
    """The gateway answered that it cannot; `code` is its code."""

    default_code = "gateway_refused"


class _Waiting:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: control.Reply | None = None


class GatewayClient:
    """One connection to one gateway.

    Args:
        path: `<run_dir>/control.sock`.
        on_event: Called from the reading thread for each `control.Event`.

    Attributes:
        state: What the gateway said on `Hello`.
        closed: Set once the connection is gone.

    Raises:
        GatewayLostError: Nobody answers there.
    """

    def __init__(self, path: Path, on_event: Callable[[control.Event], None]) -> None:
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self.closed = threading.Event()
        self._socket = _connect(path)
        self._reader = threading.Thread(target=self._read, name="gateway-reader", daemon=True)
        self._reader.start()
        try:
            self.state = self.call(control.Hello(self._id()), control.GatewayState)
        except UnavailableError:
            self.close()
            raise

    def prove(
        self,
        spec: control.ModelSpec,
        fds: Sequence[int],
        *,
        measure: bool = False,
        stop: threading.Event | None = None,
    ) -> control.Outcome:
        """Load and judge in a throw-away process, and time it; the outcome may be negative.

        Once `stop` is set, the process is ended; the outcome's code then is `canceled`.
        """
        request = control.Prove(self._id(), spec, measure)
        return self.call(request, control.Outcome, fds, deadline_s=_load_s(spec), stop=stop)

    def prepare(
        self, spec: control.ModelSpec, fds: Sequence[int], max_bytes: int, stop: threading.Event
    ) -> control.Outcome:
        """Make the prepared form in a throw-away process; `stop` as for `prove`."""
        request = control.Prepare(self._id(), spec, max_bytes)
        deadline_s = PREPARE_LOADS * _load_s(spec)
        return self.call(request, control.Outcome, fds, deadline_s=deadline_s, stop=stop)

    def load(self, spec: control.ModelSpec, fds: Sequence[int]) -> control.Outcome:
        """Start a worker beside those that serve; the outcome may be negative."""
        return self.call(
            control.Load(self._id(), spec), control.Outcome, fds, deadline_s=_load_s(spec)
        )

    def flip(self, model: str, digest: str) -> control.Flipped:
        """Move the route.

        Raises:
            GatewayRefusedError: The digest is not loaded.
        """
        return self.call(control.Flip(self._id(), model, digest), control.Flipped)

    def canary(self, model: str, digest: str, pct: int, lease_s: int) -> None:
        """Let a loaded digest answer a share of the clients for so long; 0 percent ends that.

        Raises:
            GatewayRefusedError: The digest is not loaded, or has died; what is active answers all.
        """
        outcome = self.call(
            control.Canary(self._id(), model, digest, pct, lease_s), control.Outcome
        )
        if not outcome.ok:
            raise GatewayRefusedError(outcome.message, code=outcome.code)

    def shadow(self, model: str, digest: str, pct: int, lease_s: int) -> control.Shadowed:
        """Give a loaded digest copies of requests for so long; return what it has shown so far.

        Raises:
            GatewayRefusedError: The digest is not loaded, or has died.
        """
        request = control.Shadow(self._id(), model, digest, pct, lease_s)
        return self.call(request, control.Shadowed)

    def hold(self, model: str, drain_s: int) -> control.Outcome:
        """End a model's workers while its requests wait for the next flip."""
        return self.call(
            control.Hold(self._id(), model, drain_s), control.Outcome, deadline_s=drain_s + 30.0
        )

    def workers(self) -> list[control.WorkerInfo]:
        """Return what is loaded now."""
        return self.call(control.Hello(self._id()), control.GatewayState).workers

    def unroute(self, model: str) -> control.Outcome:
        """End serving a model."""
        return self.call(control.Unroute(self._id(), model), control.Outcome, deadline_s=60.0)

    def release(self, digest: str, drain_s: int) -> control.Outcome:
        """Drain and end a worker."""
        return self.call(
            control.Release(self._id(), digest, drain_s), control.Outcome, deadline_s=drain_s + 30.0
        )

    def stats(self) -> list[control.DigestStats]:
        """Read the counters."""
        return self.call(control.Stats(self._id()), control.StatsReply).digests

    def shutdown(self) -> None:
        """End gateway, zygote and workers."""
        self.call(control.Shutdown(self._id()), control.Outcome, deadline_s=30.0)
        self.closed.wait(10.0)

    def call(
        self,
        request: control.Request,
        kind: type[R],
        fds: Sequence[int] = (),
        deadline_s: float = CALL_S,
        stop: threading.Event | None = None,
    ) -> R:
        """Send a request and return its reply.

        Raises:
            GatewayLostError: The gateway is gone or silent; the connection is then closed.
            GatewayRefusedError: It answered with an `Outcome` where another reply was due.
        """
        waiting = _Waiting()
        with self._lock:
            self._waiting[request.id] = waiting
        try:
            if self.closed.is_set():
                raise GatewayLostError("The gateway is gone.")
            with self._sending:
                packets.send(self._socket, request, fds)
            if not self._wait(waiting, request, deadline_s, stop):
                self.close()
                raise GatewayLostError(
                    f"The gateway has not answered {type(request).__name__} for {deadline_s:.0f} s."
                )
        except OSError as error:
            self.close()
            raise GatewayLostError(f"The gateway is gone: {error}.") from error
        finally:
            with self._lock:
                self._waiting.pop(request.id, None)
        return _expect(waiting.reply, kind, request)

    def _wait(
        self,
        waiting: _Waiting,
        request: control.Request,
        deadline_s: float,
        stop: threading.Event | None,
    ) -> bool:
        """Wait for a reply; once `stop` is set, ask the gateway to end what it does."""
        if stop is None or not isinstance(request, control.Prove | control.Prepare):
            return waiting.done.wait(deadline_s)
        ends = time.monotonic() + deadline_s
        while time.monotonic() < ends:
            if waiting.done.wait(STOP_LOOK_S):
                return True
            if stop.is_set():
                with self._sending:
                    packets.send(self._socket, control.Cancel(self._id(), request.spec.digest))
                return waiting.done.wait(CALL_S)
        return False

    def close(self) -> None:
        """Close the connection; the gateway serves on."""
        self.closed.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # gone already

    def _id(self) -> int:
        return next(self._ids)

    def _read(self) -> None:
        try:
            while (received := packets.receive(self._socket)) is not None:
                message, fds = received
                for fd in fds:
                    os.close(fd)  # a gateway has none to give
                self._take(message)
        except (OSError, msgspec.DecodeError):
            pass  # the same as an end: the link starts anew
        finally:
            self.closed.set()
            self._socket.close()
            with self._lock:
                for waiting in self._waiting.values():
                    waiting.done.set()

    def _take(self, message: control.Message) -> None:
        if isinstance(message, control.Event):
            self._on_event(message)
        elif isinstance(message, control.Reply):
            with self._lock:
                waiting = self._waiting.get(message.id)
            if waiting:
                waiting.reply = message
                waiting.done.set()


def _expect(reply: control.Reply | None, kind: type[R], request: control.Request) -> R:
    if isinstance(reply, kind):
        return reply
    if reply is None:
        raise GatewayLostError("The gateway went away before it answered.")
    if isinstance(reply, control.Outcome):
        raise GatewayRefusedError(
            reply.message or f"The gateway refused {type(request).__name__}.", code=reply.code
        )
    raise GatewayLostError(f"The gateway answered {type(reply).__name__}.", code="protocol")


def _load_s(spec: control.ModelSpec) -> float:
    """The gateway ends a load after `load_s`; beyond twice that it is the gateway that hangs."""
    return 2.0 * spec.limits.load_s + 30.0


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(CONNECT_S)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise GatewayLostError(f"No gateway answers at {path}: {error}.") from error
    sock.settimeout(None)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 2 * packets.MESSAGE_MAX_BYTES)
    return sock
