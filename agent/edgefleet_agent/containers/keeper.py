"""The keeper: carries out what agentd asks of dockerd, and tells what containers do by themselves.

It holds no state of its own: what runs is found by its labels. It ends with agentd; the containers
do not.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.containers import messages, settings
from edgefleet_agent.containers.engine import Engine
from edgefleet_agent.ipc import dial
from edgefleet_shared.errors import EdgeFleetError

PAUSE_S: Final = 1.0
"""Between two tries to hear dockerd's events."""
TOLD_S: Final = 0.5
"""At most so often is progress told."""
OUT_OF_MEMORY = "It needed more memory than its package allows, and was killed."


class Keeper:
    """Serves one agentd.

    Args:
        sock: agentd's end is the other one.
        connect: Makes the engine; called again after dockerd was away.
    """

    def __init__(self, sock: socket.socket, connect: Callable[[], Engine]) -> None:
        self._sock, self._connect = sock, connect
        self._sending = threading.Lock()
        self._making = threading.Lock()
        self._changing = threading.Lock()  # one change of containers at a time
        self._made: Engine | None = None
        self._cancelled: dict[int, threading.Event] = {}
        self._starved: set[str] = set()  # containers that the kernel took memory from

    def run(self) -> None:
        """Serve until agentd closes its end."""
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            try:
                message = messages.receive(self._sock)
            except (OSError, msgspec.DecodeError) as error:
                sys.stderr.write(f"The keeper ends: {error}\n")
                return
            if message is None:
                return
            if isinstance(message, messages.Cancel):
                self._flag(message.pull).set()
            elif isinstance(message, messages.Request):
                threading.Thread(target=self._serve, args=(message,), daemon=True).start()

    def _serve(self, message: messages.Request) -> None:
        try:
            answer = self._carry_out(message)
        except EdgeFleetError as error:
            answer = messages.Done(
                message.id, ok=False, code=error.code, message=error.message, hint=error.hint
            )
        self._send(answer)

    def _carry_out(self, message: messages.Request) -> messages.Done:
        engine = self._engine()
        if isinstance(message, messages.Pull):
            return self._pull(engine, message)
        with self._changing:
            match message:
                case messages.Start(number, wanted):
                    self._start(engine, wanted)
                    return messages.Done(number)
                case messages.Hold(number, digest):
                    engine.hold(digest)
                    return messages.Done(number)
                case messages.Sweep(number, keep, model):
                    engine.sweep(set(keep), model)
                    return messages.Done(number)
                case messages.Remove(number, digest):
                    engine.remove(digest)
                    return messages.Done(number)
                case messages.Look(number, image):
                    here = engine.image(image) is not None
                    return messages.Done(number, images=[image] if here else [])
                case messages.Drop(number, images):
                    return messages.Done(number, images=[i for i in images if engine.drop(i)])
        raise EdgeFleetError(f"The keeper was sent {type(message).__name__}.", code="protocol")

    def _pull(self, engine: Engine, message: messages.Pull) -> messages.Done:
        told = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal told
            if time.monotonic() - told > TOLD_S:
                told = time.monotonic()
                self._send(messages.Progress(message.id, done, total))

        try:
            came = engine.pull(message.image, progress, self._flag(message.id))
        finally:
            self._cancelled.pop(message.id, None)
        return messages.Done(message.id, images=[message.image] if came else [])

    def _start(self, engine: Engine, wanted: messages.Wanted) -> None:
        folder = Path(wanted.folder)
        (folder / dial.GONE_FILE).unlink(missing_ok=True)
        identity = engine.start(wanted)
        if wanted.need.container.port:
            self._write_address(engine, folder, identity, wanted.need.container.port)

    @staticmethod
    def _write_address(engine: Engine, folder: Path, identity: str, port: int) -> None:
        if address := engine.address(identity):
            durable.atomic_write(folder / dial.ADDRESS, f"{address}:{port}".encode())

    # ------------------------------------------------------------------- what happens

    def _listen(self) -> None:
        """Hear dockerd for as long as we live, also after it was away."""
        while True:
            try:
                for event in self._engine().events():
                    self._heard(event)
            except EdgeFleetError:
                self._made = None
            except OSError as error:  # of our own disk
                sys.stderr.write(f"The keeper: {error}\n")
            time.sleep(PAUSE_S)

    def _heard(self, event: Mapping[str, Any]) -> None:
        identity, told = event["Actor"]["ID"], event["Actor"]["Attributes"]
        action = str(event["Action"])
        if action == "oom":
            self._starved.add(identity)
        elif action == "start":
            self._began(identity, told)
        elif action == "die":
            starved = identity in self._starved
            self._starved.discard(identity)
            if identity not in self._engine().removing:
                self._ended(told, starved=starved)

    def _began(self, identity: str, told: Mapping[str, str]) -> None:
        """Write down where a container is now that dockerd has started it again."""
        folder, port = Path(told[f"{settings.LABEL}folder"]), int(told[f"{settings.LABEL}port"])
        if port and folder.is_dir():
            self._write_address(self._engine(), folder, identity, port)

    def _ended(self, told: Mapping[str, str], *, starved: bool) -> None:
        code = "out_of_memory" if starved else "crashed"
        status = told.get("exitCode", "?")
        text = OUT_OF_MEMORY if starved else f"The container exited with status {status}."
        folder = Path(told[f"{settings.LABEL}folder"])
        if folder.is_dir() and not self._held(told[f"{settings.LABEL}digest"]):
            durable.atomic_write(folder / dial.GONE_FILE, f"{code} {text}".encode())
        model, version, digest = (
            told[f"{settings.LABEL}{name}"] for name in ("model", "version", "digest")
        )
        self._send(messages.Ended(model, version, digest, code, text))

    def _held(self, digest: str) -> bool:
        """Whether dockerd starts it again by itself."""
        return self._engine().held(digest)

    # ------------------------------------------------------------------- parts

    def _engine(self) -> Engine:
        with self._making:
            if self._made is None:
                self._made = self._connect()
            return self._made

    def _flag(self, pull: int) -> threading.Event:
        return self._cancelled.setdefault(pull, threading.Event())

    def _send(self, message: messages.Message) -> None:
        try:
            with self._sending:
                messages.send(self._sock, message)
        except OSError as error:
            sys.stderr.write(f"The keeper cannot tell agentd: {error}\n")
