"""The client for code that waits: one request at a time, from any thread."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from edgefleet_agent.client import documents
from edgefleet_agent.client.errors import DeadlineError, GatewayGoneError, InvalidRequestError
from edgefleet_agent.client.memory import Blocks
from edgefleet_agent.client.request import Asked, Requests, Result, Send
from edgefleet_agent.ipc import fast
from edgefleet_shared.errors import InvalidInputError

Retry = Literal["unsent", "always"]
GRACE_S = 2.0
"""How long after a deadline, which the gateway keeps, it is taken to hang."""
_TIME = struct.Struct("@ll")
AGAIN_S = 0.05


class Client:
    """Asks the models of this device.

    Args:
        path: The gateway's socket; None: `EDGEFLEET_INFER_SOCKET`, else the agent's default.
        timeout_s: Deadline of a request that names none.
        retry: What happens when the gateway went away, for example because it was restarted.
            `unsent`: connect anew, once, if nothing of the request had been sent. `always`: go on
            trying until the deadline; a request may then be run twice.

    Connects with the first request. A lock lets one thread in at a time; for requests side by side
    use several clients, or `AsyncClient`.
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
        self._lock = threading.Lock()
        self._blocks = Blocks()
        self._requests = Requests(self._blocks)
        self._sock: socket.socket | None = None
        self._patience_s = 0.0
        self._prefix = bytearray(fast.PREFIX.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and give up shared memory; arrays that were returned stay valid."""
        with self._lock:
            self._disconnect()
            self._blocks.close()

    def buffer(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Return an array of zeros in shared memory: as an input, it or a part is not copied.

        Raises:
            MemoryError: Too many buffers, or bytes in them, are in use.
        """
        with self._lock:
            return self._blocks.buffer(tuple(shape), dtype)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        timeout_s: float | None = None,
        outputs: Sequence[str] | None = None,
        raw: bool = False,
    ) -> Result:
        """Run a model once.

        Args:
            model: Its name on this device.
            inputs: By name: arrays of the datatype that the model declares; of texts for BYTES.
            version: A version that is loaded; '' is the one in service.
            timeout_s: Deadline; None is the client's.
            outputs: Which outputs to return; None is all.
            raw: Ask the bare model, also where its package declares processing.

        Returns:
            Outputs by name; BYTES as arrays of bytes objects. Large ones lie in shared memory and
            are the caller's for as long as it holds them.

        Raises:
            InferenceError: One of its kinds, see `client.errors`.
        """
        timeout = self._timeout_s if timeout_s is None else timeout_s
        end = time.monotonic() + timeout
        with self._lock:
            again = True
            inline = False
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise DeadlineError(f"No answer within {timeout} s.")
                sent = [False]
                try:
                    self._connect(left)
                    asked = self._requests.make(
                        model, inputs, (version, raw), outputs, int(left * 1e6)
                    )
                    return self._exchange(asked, left, sent)
                except GatewayGoneError:
                    if not again or (sent[0] and self._retry != "always"):
                        raise
                    again = self._retry == "always"
                    time.sleep(min(AGAIN_S, max(0.0, left)) if again else 0.0)
                except InvalidRequestError as error:
                    if error.code == "other_model" and not self._requests.stays:
                        self._requests.stays = True  # it was lent for another: a connection for all
                        self._disconnect()
                    elif error.code != "bad_slot" or inline:
                        raise
                    else:
                        inline = True  # the gateway takes no more memory of ours: send it whole

    # ------------------------------------------------------------------- about models

    def models(self) -> list[dict[str, Any]]:
        """Return every loaded version: name, version, state, reason.

        Raises:
            GatewayGoneError: Nobody answers.
        """
        found: list[dict[str, Any]] = documents.document(self._get("/v2/repository/index"))
        return found

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """Return a model's versions, platform, inputs and outputs, as the protocol has them.

        Raises:
            UnknownModelError: There is no such model, or version.
            GatewayGoneError: Nobody answers.
        """
        found: dict[str, Any] = documents.document(self._get(documents.model_path(model, version)))
        return found

    def ready(self, model: str = "", version: str = "") -> bool:
        """Tell whether a model, or any model at all, can be asked; False without a gateway."""
        try:
            return documents.read(self._get(documents.ready_path(model, version)))[0] == 200
        except GatewayGoneError:
            return False

    def _get(self, path: str) -> bytes:
        with self._dial(self._timeout_s) as sock:
            sock.settimeout(self._timeout_s)
            try:
                sock.sendall(documents.get(path))
                return b"".join(iter(lambda: sock.recv(65536), b""))
            except OSError as error:
                raise documents.gone(self._path, error) from error

    # ------------------------------------------------------------------- the connection

    def _dial(self, patience_s: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(patience_s)
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise documents.gone(self._path, error) from error
        return sock

    def _connect(self, patience_s: float) -> None:
        if self._sock is not None:
            return
        self._sock = self._dial(patience_s)
        self._sock.settimeout(None)
        self._patience_s = 0.0
        try:
            self._wait_at_most(patience_s + GRACE_S)
            self._send(Send([self._requests.hello()]), [False])
            self._requests.welcomed(*self._receive())
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _wait_at_most(self, seconds: float) -> None:
        """Let receiving give up after so long; by the kernel, which costs no system call a time."""
        assert self._sock is not None
        if not seconds <= self._patience_s <= seconds + GRACE_S:
            self._patience_s = seconds + GRACE_S / 2
            whole = int(self._patience_s)
            data = _TIME.pack(whole, int((self._patience_s - whole) * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._sock.setsockopt(socket.SOL_SOCKET, option, data)

    def _exchange(self, asked: Asked, timeout_s: float, sent: list[bool]) -> Result:
        whole = False
        try:
            self._wait_at_most(timeout_s + GRACE_S)
            for send in asked.sends:
                self._send(send, sent)
                if asked.hold and send is asked.sends[0]:
                    self._receive()
            frame, body = self._receive()
            while frame[2] != asked.number:
                self._aside(asked, frame)
                frame, body = self._receive()
            whole = True
            return self._requests.answered(asked, frame, body)
        except BaseException:
            if not whole:  # what still comes on this connection is nobody's
                self._disconnect()
                asked.give_back(spoilt=True, blocks=self._blocks)
            raise
        finally:
            asked.close()

    def _aside(self, asked: Asked, frame: fast.Prefix) -> None:
        """Take what comes before the answer: how the gateway likes the slots."""
        block = asked.offers.get(frame[2])
        if block is not None and frame[0] == fast.REFUSED:
            self._requests.slot_refused(block)

    def _send(self, send: Send, sent: list[bool]) -> None:
        assert self._sock is not None
        parts, fd = send
        try:
            if fd >= 0:
                count = socket.send_fds(self._sock, parts, [fd])
            else:
                count = self._sock.sendmsg(parts)
            sent[0] = True
            if count < sum(map(len, parts)):
                self._sock.sendall(memoryview(b"".join(parts))[count:])
        except BlockingIOError as error:
            raise DeadlineError("The gateway did not take the request in time.") from error
        except OSError as error:
            raise documents.gone(self._path, error) from error

    def _receive(self) -> tuple[fast.Prefix, bytearray]:
        """Return the next frame."""
        self._fill(memoryview(self._prefix))
        try:
            frame = fast.read_prefix(self._prefix)
        except InvalidInputError as error:
            raise GatewayGoneError(f"What answers is no gateway: {error}") from error
        body = bytearray(frame[3] + frame[4])
        self._fill(memoryview(body))
        return frame, body

    def _fill(self, view: memoryview) -> None:
        assert self._sock is not None
        while view:
            try:
                count = self._sock.recv_into(view)
            except BlockingIOError as error:
                raise DeadlineError("The gateway does not answer.") from error
            except OSError as error:
                raise documents.gone(self._path, error) from error
            if not count:
                raise GatewayGoneError("The gateway went away before it answered.")
            view = view[count:]
