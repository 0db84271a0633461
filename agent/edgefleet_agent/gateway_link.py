"""Keeps a gateway running and a connection to it: find it, start it, notice its death, again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgefleet_agent.gateway_client import GatewayClient, GatewayLostError
from edgefleet_agent.ipc import control

START_S = 20.0
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 30.0
LOG_BYTES = 1024 * 1024
STEADY_S = 60.0
"""A gateway that lived this long died of something new: the back-off begins again."""


class LinkEvents(Protocol):
    """What the link calls back, from threads of its own; each call must return at once."""

    def on_gateway_up(self, client: GatewayClient) -> None:
        """Tell that a gateway answers; `client.state` says what it runs."""

    def on_gateway_down(self, reason: str) -> None:
        """Tell that it is gone; the link is already starting another."""

    def on_gateway_event(self, event: control.Event) -> None:
        """Pass on what the gateway tells."""


class GatewayLink:
    """The supervisor of the gateway process.

    Args:
        run: The run folder.
        command: How to start a gateway; it must listen on `<run>/control.sock`.
        environ: Its environment.
        events: Who is told.
    """

    def __init__(
        self,
        run: Path,
        command: Sequence[str],
        environ: Mapping[str, str],
        events: LinkEvents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._command, self._environ = run, list(command), dict(environ)
        self._events, self._clock = events, clock
        self._stop = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._client: GatewayClient | None = None
        self._thread = threading.Thread(target=self._loop, name="gateway-link", daemon=True)

    @property
    def client(self) -> GatewayClient:
        """The connection as it stands.

        Raises:
            GatewayLostError: There is none just now.
        """
        client = self._client
        if client is None or client.closed.is_set():
            raise GatewayLostError("No gateway is running just now.")
        return client

    def start(self) -> None:
        """Find or start a gateway, and stay with it until `stop`."""
        self._thread.start()

    def stop(self, *, end_gateway: bool) -> None:
        """Leave; with `end_gateway`, the gateway and its workers drain and end first."""
        self._stop.set()
        if end_gateway:
            self._end()
        if self._client is not None:
            self._client.close()
        self._thread.join(10.0)
        if end_gateway and self._child is not None:
            self._reap(self._child)

    def _end(self) -> None:
        client = self._client
        with contextlib.suppress(GatewayLostError):  # gone is what was wanted
            if client is not None and not client.closed.is_set():
                client.shutdown()
                return
            # A gateway of the agentd before us, which we have not reached yet.
            stray = GatewayClient(self._run / "control.sock", self._events.on_gateway_event)
            stray.shutdown()
            stray.close()

    def _loop(self) -> None:
        delay = BACKOFF_MIN_S
        while not self._stop.is_set():
            born = self._clock()
            try:
                client = self._find()
            except (GatewayLostError, OSError) as error:
                self._events.on_gateway_down(str(error))
            else:
                self._client = client
                self._events.on_gateway_up(client)
                client.closed.wait()
                self._client = None
                if self._stop.is_set():
                    return
                self._events.on_gateway_down("The connection to the gateway broke.")
                if self._clock() - born > STEADY_S:
                    delay = BACKOFF_MIN_S
            self._stop.wait(delay)
            delay = min(2 * delay, BACKOFF_MAX_S)

    def _find(self) -> GatewayClient:
        """Return a connection to the gateway that runs, or start one."""
        path = self._run / "control.sock"
        try:
            return GatewayClient(path, self._events.on_gateway_event)
        except GatewayLostError:
            self._spawn()
        deadline = self._clock() + START_S
        while not self._stop.wait(0.05):
            try:
                return GatewayClient(path, self._events.on_gateway_event)
            except GatewayLostError:
                self._check_child()
                if self._clock() > deadline:
                    raise
        raise GatewayLostError("agentd is stopping.")

    def _spawn(self) -> None:
        """Start a gateway in a session of its own: it must outlive us."""
        if self._child is not None and self._child.poll() is None:
            self._reap(self._child)  # it runs but does not answer
        path = self._run / "gateway.log"
        full = path.exists() and path.stat().st_size > LOG_BYTES
        with path.open("wb" if full else "ab") as log:
            self._child = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=os.sep,
            )

    def _check_child(self) -> None:
        if self._child is not None and (status := self._child.poll()) is not None:
            raise GatewayLostError(
                f"The gateway ended with status {status} while starting: {self._last_words()}",
                hint=f"All of it is in {self._run / 'gateway.log'}.",
            )

    def _last_words(self) -> str:
        with (self._run / "gateway.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given.")

    @staticmethod
    def _reap(child: subprocess.Popen[bytes]) -> None:
        try:
            child.wait(5.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
