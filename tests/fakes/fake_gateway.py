"""A small gateway that loads nothing: it speaks `ipc/control.py`, keeps routes, and obeys a script.

Run as `python -m tests.fakes.fake_gateway RUN_DIR` it is a process of its own; `FakeGateway` is the
same in a thread, with its script and counters at hand.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from edgefleet_agent.ipc import control, packets
from edgefleet_shared import histogram


class Loaded:
    """One digest in the gateway and its counters."""

    def __init__(self, spec: control.ModelSpec):
        self.spec = spec
        self.role = "idle"
        self.counts = dict.fromkeys(
            ("requests", "client_errors", "server_errors", "rejected", "nonfinite", "replayed",
             "crashes", "in_flight"), 0,
        )  # fmt: skip
        self.latency: histogram.Counts = {}


class FakeGateway:
    """The gateway's control side.

    Attributes:
        refuse: (request name, digest) to the outcome's code; digest "" is any, and a variant's id
            stands for that variant.
        hold: Request names that wait until they are discarded from the set.
        lose: Request names that are neither done nor answered.
        seen: Every request, in order, by name.
        fds: Bytes of the files that came with the last Prove or Load.
        share: Percent of nodes that every model runs on its accelerator, as far as it tells.
        medians: Variant to the median time of a run that a proof which measures tells, us.
        variants: The variant of every Prove and Load, in order, as "Prove gpu".
        placed: The execution providers of each of them, by preference.
        memory_kb: What every worker takes, as far as it tells.
        shadows: As `shares`, of copies.
        shown: Fields of what a version in the shadow has shown.
        shares: Every share that a version on trial got, in order: digest and percent.
    """

    def __init__(self, run: Path):
        self.refuse: dict[tuple[str, str], str] = {}
        self.hold: set[str] = set()
        self.lose: set[str] = set()
        self.seen: list[str] = []
        self.share = -1
        self.medians: dict[str, int] = {}
        self.variants: list[str] = []
        self.placed: list[list[str]] = []
        self.shadows: list[tuple[str, int]] = []
        self.shown: dict[str, Any] = {}
        self.memory_kb = 100
        self.shares: list[tuple[str, int]] = []
        self.files: list[bytes] = []
        self.over = threading.Event()
        self._loaded: dict[str, Loaded] = {}
        self._released: dict[str, Loaded] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._clients: list[socket.socket] = []
        self._boot = os.urandom(4).hex()
        self._path = run / "control.sock"
        self._path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.bind(str(self._path))
        self._server.listen(4)
        threading.Thread(target=self._accept, daemon=True).start()

    def routed(self, model: str) -> str:
        """Return the digest that the route names, or ''."""
        with self._lock:
            return next(
                (
                    d
                    for d, x in self._loaded.items()
                    if x.spec.model == model and x.role == "active"
                ),
                "",
            )

    def loaded(self) -> dict[str, str]:
        """Return digest to role."""
        with self._lock:
            return {digest: loaded.role for digest, loaded in self._loaded.items()}

    def answer(
        self, model: str, count: int = 1, compute_ns: int = 1_000_000, of: str = "", **counts: int
    ) -> str:
        """Pretend that the active version answered, or digest `of`; returns which it was."""
        with self._lock:
            digest = of or self.routed(model)
            loaded = self._loaded[digest]
            loaded.counts["requests"] += count
            for name, value in counts.items():
                loaded.counts[name] += value
            index = histogram.bucket(compute_ns)
            loaded.latency[index] = loaded.latency.get(index, 0) + count
            return digest

    def let_go(self, name: str):
        """Let a held request go on."""
        with self._changed:
            self.hold.discard(name)
            self._changed.notify_all()

    def tell(self, event: control.Event):
        """Send an event to everyone connected."""
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                packets.send(client, event)

    def quarantine(self, digest: str, *, fall_back: bool):
        """Give a digest up, as after three crashes."""
        with self._lock:
            loaded = self._loaded[digest]
            self._release(digest)
            other = next(
                (d for d, x in self._loaded.items() if x.role == "standby" and fall_back), ""
            )
            if other:
                self._loaded[other].role = "active"
        model = loaded.spec.model
        self.tell(control.Event("quarantined", model, digest, "three crashes in a minute", other))

    def die(self, digest: str):
        """Let a worker crash that is loaded and not routed: it is not restarted."""
        with self._lock:
            self._loaded[digest].counts["crashes"] += 1
            self._release(digest)

    def close(self):
        """End at once, as a crash would."""
        self.over.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        with self._changed:
            self.hold.clear()
            self._changed.notify_all()
        self._path.unlink(missing_ok=True)

    def _accept(self):
        while not self.over.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket):
        try:
            while (received := packets.receive(client)) is not None:
                request, fds = received
                threading.Thread(target=self._one, args=(client, request, fds), daemon=True).start()
        except (OSError, ValueError):
            pass
        finally:
            client.close()
            if client in self._clients:
                self._clients.remove(client)

    def _one(self, client: socket.socket, request: control.Request, fds: list[int]):
        name = type(request).__name__
        if isinstance(request, control.Prove | control.Load):
            # Read before the reply: the sender closes its own descriptors after it.
            self.files = [os.pread(fd, os.fstat(fd).st_size, 0) for fd in fds]
        for fd in fds:
            os.close(fd)
        with self._changed:
            self.seen.append(name)
            self._changed.wait_for(lambda: name not in self.hold or self.over.is_set(), 60)
            if self.over.is_set() or name in self.lose:
                return
            reply = self._reply(name, request, len(fds))
        with contextlib.suppress(OSError):
            packets.send(client, reply)
        if name == "Shutdown":
            self.close()

    def _reply(self, name: str, request, files: int) -> control.Reply:  # noqa: C901, PLR0912
        digest = getattr(request, "digest", "") or getattr(
            getattr(request, "spec", None), "digest", ""
        )
        code = self.refuse.get((name, digest)) or self.refuse.get((name, ""))
        if code:
            return control.Outcome(request.id, ok=False, code=code, message=f"scripted {code}")
        match request:
            case control.Hello():
                workers = [
                    control.WorkerInfo(x.spec.model, x.spec.version, d, x.role, os.getpid())
                    for d, x in self._loaded.items()
                ]
                return control.GatewayState(request.id, os.getpid(), self._boot, workers)
            case control.Prepare():
                return control.Outcome(request.id, ok=False, code="does_not_pay")
            case control.Cancel():
                self.let_go("Prove")
            case control.Prove() | control.Load():
                return self._load(request, digest, files)
            case control.Flip():
                return self._flip(request)
            case control.Shadow():
                if digest not in self._loaded:
                    return control.Outcome(request.id, ok=False, code="not_loaded")
                if self._loaded[digest].role == "active":
                    return control.Outcome(request.id, ok=False, code="active")
                self.shadows.append((digest, request.pct))
                return control.Shadowed(request.id, **self.shown)
            case control.Canary():
                if request.pct and digest not in self._loaded:
                    return control.Outcome(request.id, ok=False, code="not_loaded")
                if request.pct and self._loaded[digest].role == "active":
                    return control.Outcome(request.id, ok=False, code="active")
                self.shares.append((digest, request.pct))
            case control.Hold():
                for key in [k for k, x in self._loaded.items() if x.spec.model == request.model]:
                    self._release(key)
            case control.Unroute():
                for key in [k for k, x in self._loaded.items() if x.spec.model == request.model]:
                    self._release(key)
            case control.Release():
                if request.digest in self._loaded:
                    if self._loaded[request.digest].role == "active":
                        return control.Outcome(request.id, ok=False, code="active")
                    self._release(request.digest)
            case control.Stats():
                return control.StatsReply(request.id, self._stats())
        return control.Outcome(request.id, ok=True)

    def _load(self, request, digest: str, files: int) -> control.Outcome:
        name, spec = type(request).__name__, request.spec
        if files != len(spec.files):
            return control.Outcome(request.id, ok=False, code="load_failed")
        self.variants.append(f"{name} {spec.variant}")
        self.placed.append(list(spec.placement))
        if code := self.refuse.get((name, spec.variant)):
            return control.Outcome(request.id, ok=False, code=code, message=f"scripted {code}")
        if name == "Load":
            new = self._released.pop(digest, None) or Loaded(spec)
            if self._loaded.setdefault(digest, new) is new:
                new.role = "idle"
        return control.Outcome(
            request.id, ok=True, load_ms=1, ready_ms=2, memory_kb=100, accelerated_pct=self.share,
            median_us=self.medians.get(spec.variant, 0),
        )  # fmt: skip

    def _release(self, digest: str):
        self._released[digest] = self._loaded.pop(digest)
        self._released[digest].role = "released"

    def _flip(self, request: control.Flip) -> control.Reply:
        new = self._loaded.get(request.digest)
        if new is None or new.spec.model != request.model:
            return control.Outcome(request.id, ok=False, code="not_loaded", message="not loaded")
        previous = self.routed(request.model)
        by_role = defaultdict(list)
        for loaded in self._loaded.values():
            if loaded.spec.model == request.model:
                by_role[loaded.role].append(loaded)
        if previous != request.digest:
            for loaded in by_role["standby"]:
                loaded.role = "idle"
            if previous:
                self._loaded[previous].role = "standby"
            new.role = "active"
        return control.Flipped(request.id, previous, 0)

    def _stats(self) -> list[control.DigestStats]:
        return [
            control.DigestStats(
                model=x.spec.model, version=x.spec.version, digest=digest, role=x.role,
                memory_kb=self.memory_kb, latency=dict(x.latency), compute=dict(x.latency),
                **x.counts,
            )
            for digest, x in [*self._loaded.items(), *self._released.items()]
        ]  # fmt: skip


def main() -> int:
    """Run as a process until it is shut down or killed."""
    gateway = FakeGateway(Path(sys.argv[sys.argv.index("--run") + 1]))
    gateway.over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
