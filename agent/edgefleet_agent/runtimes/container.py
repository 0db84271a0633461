"""A container behind the port `Runtime`: every `run` is a request to the server in it.

The worker holds no network and may open no socket: it asks the gateway for connected ones (see
`ipc.dial`). Once the container does not answer there any more, the worker ends, so that a crash in
a container is what a crash of any worker is.
"""

from __future__ import annotations

import array
import http.client
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from edgefleet_agent.ipc import dial, oip
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_shared.errors import UnavailableError

LOST_STATUS = 71  # EX_OSERR: what the worker exits with when its container is gone
_HEALTH_S = 5.0
_PAUSE_S = 0.05
_GRACE_S = 1.0  # left of `load_s` to say why it is not ready
_STACK_BYTES = 512 * 1024


class NotReachableError(ConnectionError):
    """Nothing listens in the container just now."""


class Dial:
    """Gets connections from the gateway; safe in several threads."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))
        self._lock = threading.Lock()

    def connect(self) -> socket.socket:
        """Return a connection to the container's server.

        Raises:
            NotReachableError: Nothing listens there now.
            UnavailableError: The container has ended for good; the code says how.
        """
        with self._lock:
            self._socket.send(dial.ASK)
            room = socket.CMSG_SPACE(array.array("i").itemsize)
            data, ancillary, _, _ = self._socket.recvmsg(dial.ANSWER_BYTES, room)
        if data[:1] == dial.GONE:
            code, _, text = data[1:].decode(errors="replace").partition(" ")
            raise UnavailableError(text, code=code)
        if data != dial.HERE or not ancillary:
            raise NotReachableError("nothing listens in the container")
        numbers = array.array("i")
        numbers.frombytes(ancillary[0][2][: numbers.itemsize])
        return socket.socket(fileno=numbers[0])


class Connection(http.client.HTTPConnection):
    """HTTP over a connection of the gateway's."""

    def __init__(self, dialer: Dial, timeout_s: float | None) -> None:
        super().__init__("model", timeout=timeout_s)
        self._dialer = dialer
        self.used = False

    def connect(self) -> None:
        """Get the connection; raises as `Dial.connect`."""
        self.sock = self._dialer.connect()
        self.sock.settimeout(self.timeout)

    def exchange(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, int]:
        """Return status, body and length of the JSON in it, -1 if it is JSON alone."""
        self.request(method, path, body or None, dict(headers or {}))
        response = self.getresponse()
        length = response.getheader("Inference-Header-Content-Length", "-1")
        found = response.status, response.read(), int(length) if length.isdigit() else -1
        self.used = True
        return found


class ContainerSession:
    """The model in a container; answers as many requests at once as there are callers."""

    def __init__(self, spec: ModelSpec, dialer: Dial) -> None:
        assert spec.container is not None
        self._spec, self._dialer = spec, dialer
        self._idle: list[Connection] = []
        self._path = f"/v2/models/{spec.container.container.served_as or spec.model}/infer"
        self.concurrent = spec.container.container.concurrency > 1
        threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name; errors as the port says. Ends the process, see above."""
        names = [tensor.name for tensor in self._spec.outputs]
        body, json_length = oip.request(inputs, names)
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(json_length),
        }
        status, answer, length = self._exchange(body, headers)
        if status == 200:
            return oip.answer(answer, length)
        text = oip.problem(answer)
        if 400 <= status < 500:
            raise ValueError(f"The container refuses it with status {status}: {text}")
        raise RuntimeError(f"The container failed with status {status}: {text}")

    def _exchange(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, int]:
        """Ask once more by a new connection where an old one had been closed meanwhile."""
        while True:
            connection = self._take()
            used = connection.used
            try:
                found = connection.exchange("POST", self._path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not used:
                    lost(f"The container broke off a request: {error!r}.")
                continue
            except UnavailableError as error:
                lost(str(error))
            if connection.sock is not None:  # else the server has said `Connection: close`
                self._idle.append(connection)
            return found

    def _take(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return Connection(self._dialer, None)

    def _watch(self) -> None:
        """Notice the container's end also while nobody asks: by a connection that nobody uses."""
        while True:
            try:
                with self._dialer.connect() as lifeline:
                    poll = select.poll()
                    poll.register(lifeline, select.POLLRDHUP)
                    poll.poll()
            except (OSError, UnavailableError) as error:
                lost(f"The container is gone: {error}.")
            time.sleep(_PAUSE_S)  # a server may close idle connections, but not so fast


class ContainerRuntime:
    """Reaches the container of a package; the socket to ask by comes after the files."""

    name = "container"

    def version(self) -> str:
        """Return the version of the protocol; what the image holds is its publisher's business."""
        return "2"

    def open(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
    ) -> ContainerSession:
        """Wait until server and model say that they are ready.

        Raises:
            RuntimeError: The specification is not of a container.
            UnavailableError: It was not ready in time (code `load_timeout`), or has ended
                (`out_of_memory` or `crashed`).
        """
        del provider_options
        if spec.container is None:
            raise RuntimeError("The specification is not of a container.")
        dialer = Dial(files[len(spec.files)])
        name = spec.container.container.served_as or spec.model
        end = time.monotonic() + max(spec.limits.load_s - _GRACE_S, _GRACE_S)
        for path in ("/v2/health/ready", f"/v2/models/{name}/ready"):
            _wait_ready(dialer, path, end, spec.limits.load_s)
        return ContainerSession(spec, dialer)


def _wait_ready(dialer: Dial, path: str, end: float, load_s: int) -> None:
    why = ""
    while time.monotonic() < end:
        connection = Connection(dialer, _HEALTH_S)
        try:
            status, _, _ = connection.exchange("GET", path)
            if status == 200:
                return
            why = f"GET {path} is answered with status {status}"
        except (OSError, http.client.HTTPException) as error:
            why = f"GET {path}: {error}"
        finally:
            connection.close()
        time.sleep(_PAUSE_S)
    raise UnavailableError(
        f"The container was not ready within {load_s} s: {why}.", code="load_timeout"
    )


def lost(why: str) -> NoReturn:
    """End this worker: its container is gone."""
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(LOST_STATUS)
