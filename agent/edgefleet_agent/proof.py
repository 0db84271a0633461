"""Is an accelerator usable? Only a model that has run on it says so.

A tiny model with golden vectors is loaded by a real worker in a process of its own, in the sandbox
that a served model would have, with a limit of time: a driver that hangs or crashes takes nobody
with it. What came of it is remembered for as long as nothing that it depends on has changed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.ipc import frames
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.worker.environment import VARIABLES
from edgefleet_shared import safetensors_file, strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import FileEntry, Golden, Limits, TensorSpec
from edgefleet_shared.safetensors_file import RawTensor

ONNX: Final = base64.b64decode(
    "CAcSADqNAQoRCgF4CgF3EgF5IgZNYXRNdWwSAWcqSwgECAQQAUIBd0pAAAAAAAAAgD8AAABAAABAQAAAgEAAAKBA"
    "AADAQAAA4EAAAABBAAAQQQAAIEEAADBBAABAQQAAUEEAAGBBAABwQVoTCgF4Eg4KDAgBEggKAggBCgIIBGITCgF5"
    "Eg4KDAgBEggKAggBCgIIBEIECgAQDQ=="
)
"""One MatMul: x FP32 [1, 4] times the numbers 0 to 15 as a 4 x 4 matrix."""

ASKED: Final = (1.0, 2.0, 3.0, 4.0)
ANSWER: Final = (80.0, 90.0, 100.0, 110.0)
REASON_CHARACTERS = 300
MAX_BYTES = 64 * 1024
_REPORT_BYTES = 64 * 1024
_LIBRARY = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")


class Proof(msgspec.Struct, frozen=True):
    """What one attempt found; `lasting`: it would be the same again while nothing changes."""

    usable: bool
    why_not: str = ""
    lasting: bool = True


def prove(kind: str, placement: Mapping[str, Mapping[str, str]], limit_s: float) -> Proof:
    """Run the tiny model on an accelerator in a throw-away worker.

    Args:
        kind: What a manifest calls the accelerator.
        placement: One execution provider with its options.
        limit_s: Seconds it may take.
    """
    files = {"model.onnx": (ONNX, "onnx"), "golden.safetensors": (_golden(), "golden")}
    spec = _spec(kind, placement, files, limit_s)
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(_sealed(data)) for data, _ in files.values()]
        said = stack.enter_context(tempfile.TemporaryFile())
        try:
            report = _ask(spec, fds, said, limit_s)
        except TimeoutError:
            return Proof(False, f"it gave no answer within {limit_s:.0f} s", lasting=False)
        said.seek(0)
        missing = _LIBRARY.search(said.read(MAX_BYTES).decode("utf-8", "replace"))
    if report is None:
        return Proof(False, "the process that tried it crashed", lasting=False)
    if not report.ok:
        lacks = f" ({missing[1]} is missing)" if missing else ""
        return Proof(False, f"{report.message.rstrip('.')[:REASON_CHARACTERS]}{lacks}")
    if 0 <= report.accelerated_pct < 100:
        return Proof(False, "it ran a model of one node on the CPU instead")
    return Proof(True)


def _spec(
    kind: str,
    placement: Mapping[str, Mapping[str, str]],
    files: Mapping[str, tuple[bytes, str]],
    limit_s: float,
) -> ModelSpec:
    entries = [
        msgspec.convert(
            {"path": path, "digest": sha256_digest(data), "size": len(data), "role": role},
            FileEntry,
        )
        for path, (data, role) in files.items()
    ]
    return ModelSpec(
        model="probe",
        version="0.0.0",
        digest=sha256_digest(ONNX),
        runtime="onnxruntime",
        accelerator=kind,
        providers=list(placement),
        files=entries,
        inputs=[TensorSpec("x", "FP32", [1, 4])],
        outputs=[TensorSpec("y", "FP32", [1, 4])],
        limits=Limits(memory_mb=4096, load_s=int(limit_s) + 1),
        # Accelerators may multiply with half the digits; that is the publisher's to judge.
        golden=Golden("golden.safetensors", 1, rtol=1e-2, atol=1e-2),
        placement={name: dict(options) for name, options in placement.items()},
    )


def _golden() -> bytes:
    def row(values: tuple[float, ...]) -> RawTensor:
        return RawTensor("FP32", (1, len(values)), struct.pack(f"<{len(values)}f", *values))

    return safetensors_file.encode({"0.input.x": row(ASKED), "0.output.y": row(ANSWER)})


@contextlib.contextmanager
def _sealed(data: bytes) -> Iterator[int]:
    """Give a read-only descriptor of a file without a name that holds `data`."""
    writable = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        os.write(writable, data)
        fd = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
    try:
        yield fd
    finally:
        os.close(fd)


def _ask(spec: ModelSpec, fds: list[int], said: IO[bytes], limit_s: float) -> frames.Report | None:
    """Start a worker, order it to prove, return its report; None if it died without one."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fd = theirs.fileno()
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgefleet_agent.worker", "--fd", str(fd)],
                env={**os.environ, **VARIABLES},
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
        try:
            ours.settimeout(limit_s)
            body = msgspec.msgpack.encode(frames.Order(spec, True, 1, os.getpid()))
            head = frames.head(frames.OPEN, 0, 0, frames.NO_JSON, 0, len(body))
            socket.send_fds(ours, [head + body], fds)
            return _report(ours)
        except (ConnectionError, BrokenPipeError):
            return None
        finally:
            worker.kill()
            worker.wait()


def _report(sock: socket.socket) -> frames.Report | None:
    buffer = frames.FrameBuffer()
    while (frame := buffer.next()) is None:
        if buffer.awaited > _REPORT_BYTES:
            return None
        count = sock.recv_into(buffer.space())
        if not count:
            return None
        buffer.wrote(count)
    try:
        return msgspec.msgpack.decode(frame[5], type=frames.Report).bounded()
    except msgspec.DecodeError:
        return None


class _Known(msgspec.Struct, frozen=True):
    proofs: dict[str, Proof] = {}


class ProofBook:
    """Proofs by what they depend on, in `<state_dir>/accelerators.json`; a derived cache.

    Args:
        path: The file; what cannot be read is proved again.
        limit_s: Seconds that one proof may take.
    """

    def __init__(self, path: Path, limit_s: float) -> None:
        self._path, self._limit_s = path, limit_s
        data = durable.read_bytes(path)
        try:
            self._known = (
                strict_json.decode(data, _Known, max_bytes=MAX_BYTES, what="accelerators.json")
                if data is not None
                else _Known()
            )
        except InvalidInputError:
            self._known = _Known()
        self._asked: dict[str, Proof] = {}

    def __call__(self, kind: str, placement: Mapping[str, Mapping[str, str]], facts: str) -> Proof:
        """Return the proof of a placement on this very machine, which `facts` describe."""
        text = repr((kind, sorted((n, sorted(o.items())) for n, o in placement.items()), facts))
        key = hashlib.sha256(text.encode()).hexdigest()
        found = self._known.proofs.get(key) or self._asked.get(key)
        if found is not None:
            self._asked[key] = found
            return found
        found = prove(kind, placement, self._limit_s)
        if found.lasting:
            self._asked[key] = found  # what nobody asks for any more was true of another machine
            with contextlib.suppress(OSError):  # a full disk costs a second at the next start
                durable.atomic_write(self._path, strict_json.encode(_Known(self._asked)))
        return found
