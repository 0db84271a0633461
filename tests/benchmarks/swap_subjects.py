"""What benchmark `swap` swaps: models in workers, a model and a container, a model in MLServer."""

from __future__ import annotations

import http.client
import json
import os
import time
from pathlib import Path

import msgspec

from edgefleet_agent.ipc import control
from edgefleet_agent.store import hash_fd
from tests.agent.container_world import Device
from tests.agent.gateways import Gateway
from tests.benchmarks.peer_servers import MlServer
from tests.models import Package

ROOM = 200 * 2**20


class Models:
    """One pair of models, swapped as agentd does it: prove, load, flip, release the old one."""

    def __init__(
        self, gateway: Gateway, models: list[Package], folder: Path, *, drain: bool
    ) -> None:
        self.gateway, self.folder, self.drain = gateway, folder, drain
        self.address = str(gateway.uds)
        self.models = models
        self.forms = [self._prepare(index, one) for index, one in enumerate(models)]
        self.prepared = self.forms[0] is not None
        gateway.control.serve(models[0])

    def _prepare(self, index: int, one: Package) -> control.PreparedForm | None:
        """Make the prepared form, as a device does once."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        made = [os.open(path, flags) for path in self._paths(index)]
        outcome = self.gateway.control.ask(
            control.Prepare, one.spec, ROOM, files=[*one.open(), *made]
        )
        if not outcome.ok:
            assert outcome.code in {"does_not_pay", "nothing_to_prepare"}, outcome
            return None
        files = []
        for path in self._paths(index):
            fd = os.open(path, os.O_RDONLY)
            files.append(control.PreparedFile(hash_fd(fd), path.stat().st_size))
            os.close(fd)
        return control.PreparedForm(outcome.maker, files)

    def _paths(self, index: int) -> list[Path]:
        return [self.folder / f"form-{index}-{n}" for n in range(control.PREPARED_FILES)]

    def _ask(self, kind: type, index: int) -> None:
        one, form = self.models[index], self.forms[index]
        files = one.open()
        spec = one.spec
        if form is not None:
            files += [os.open(path, os.O_RDONLY) for path in self._paths(index)]
            spec = msgspec.structs.replace(spec, prepared=form)
        outcome: control.Outcome = self.gateway.control.ask(kind, spec, files=files)
        assert outcome.ok, outcome
        assert outcome.prepared == (form is not None), outcome

    def swap(self, new: int) -> float:
        """Bring the model to the other version; return the seconds that requests were held."""
        spec, old = self.models[new].spec, self.models[1 - new].spec
        self._ask(control.Prove, new)
        held = time.monotonic()
        if self.drain:
            assert self.gateway.control.ask(control.Hold, spec.model, 10).ok
        self._ask(control.Load, new)
        _flip(self.gateway, self.models[new])
        held = time.monotonic() - held
        assert self.gateway.control.ask(control.Release, old.digest).ok
        return held if self.drain else 0.0

    def pids(self) -> list[int]:
        """Return gateway, zygote and workers."""
        return [self.gateway.process.pid, *self.gateway.children()]


class Boxed:
    """A model in a worker (0) and the same in a container of a real dockerd (1)."""

    prepared = False

    def __init__(self, gateway: Gateway, device: Device, plain: Package, boxed: Package) -> None:
        self.gateway, self.device = gateway, device
        self.address = str(gateway.uds)
        self.plain, self.boxed = plain, boxed
        self._container = 0
        gateway.control.serve(plain)

    def swap(self, new: int) -> float:
        """Bring the model into the container, or back; a container that was left is removed."""
        ask = self.gateway.control.ask
        if new:
            self.device.load(self.gateway, self.boxed)
            _flip(self.gateway, self.boxed)
            assert ask(control.Release, self.plain.spec.digest, 10).ok
            self._container = int(self.device.container(self.boxed)["State"]["Pid"])
            return 0.0
        for kind in (control.Prove, control.Load):
            assert ask(kind, self.plain.spec, files=self.plain.open()).ok
        _flip(self.gateway, self.plain)
        assert ask(control.Release, self.boxed.spec.digest, 10).ok
        self.device.containers.sweep([])
        self._container = 0
        return 0.0

    def pids(self) -> list[int]:
        """Return gateway, zygote, workers, keeper and the container's process, not dockerd."""
        container = [self._container] if self._container else []
        ours = [self.gateway.process.pid, *self.gateway.children()]
        return [*ours, *_children(os.getpid(), b"edgefleet_agent.containers"), *container]


class InMlServer:
    """A model that MLServer loads anew over its repository interface.

    Args:
        server: MLServer, with one of the two models loaded.
        models: Their files.
        bump: Each load is a new version, else the same one is loaded again in its place.
    """

    prepared = False

    def __init__(self, server: MlServer, models: list[Path], *, bump: bool) -> None:
        self.server, self.models, self.bump = server, models, bump
        self.address = server.port
        self._version = 1

    def swap(self, new: int) -> float:
        """Write its settings, and have it load them."""
        self._version += self.bump
        self.server.configure(self.models[new], str(self._version) if self.bump else None)
        connection = http.client.HTTPConnection("127.0.0.1", int(self.server.port), timeout=60)
        connection.request("POST", "/v2/repository/models/digits/load")
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"MLServer does not load: {answer.status} {json.loads(said)}.")
        return 0.0

    def pids(self) -> list[int]:
        """Return it and its children."""
        return [self.server.pid, *_children(self.server.pid, b"")]


def _flip(gateway: Gateway, one: Package) -> None:
    flipped = gateway.control.ask(control.Flip, one.spec.model, one.spec.digest)
    assert isinstance(flipped, control.Flipped), flipped


def _children(pid: int, word: bytes) -> list[int]:
    """Return the children of a process whose command line has this word."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
            found += [int(p) for p in pids if word in Path(f"/proc/{p}/cmdline").read_bytes()]
        except OSError:
            continue  # it has just ended
    return found
