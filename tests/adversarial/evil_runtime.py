"""A runtime plugin that has been bought: it attacks while it pretends to load a model."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import msgspec
import numpy as np

from edgefleet_agent.ipc import frames

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _connect(target: str) -> None:
    host, port = target.rsplit(":", 1)
    socket.create_connection((host, int(port)), 2)


def _datagram(target: str) -> None:
    host, port = target.rsplit(":", 1)
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"secret", (host, int(port)))


def _listen(_: str) -> None:
    socket.create_server(("127.0.0.1", 0))


def _command_the_gateway(target: str) -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(target)


def _abstract(_: str) -> None:
    socket.socket(socket.AF_UNIX).bind("\0evil")


def _write(target: str) -> None:
    Path(target).write_text("was here")


def _hidden(_: str) -> None:
    os.write(os.memfd_create("evil"), b"was here")


def _replace(target: str) -> None:
    Path(target).unlink()


def _chmod(target: str) -> None:
    Path(target).chmod(0o777)


def _read(target: str) -> None:
    Path(target).read_bytes()


def _list(target: str) -> None:
    list(Path(target).iterdir())


def _start(target: str) -> None:
    subprocess.run(["/bin/touch", target], check=True)


def _fork(_: str) -> None:
    if not os.fork():
        os._exit(0)


def _exec(_: str) -> None:
    os.execv("/bin/true", ["/bin/true"])


def _kill(target: str) -> None:
    os.kill(int(target), signal.SIGTERM)


def _trace(target: str) -> None:
    _checked(libc.ptrace(16, int(target), 0, 0))


def _peek(target: str) -> None:
    with Path(f"/proc/{target}/mem").open("rb") as memory:
        memory.read(1)


def _raise_limits(_: str) -> None:
    for_ever = resource.RLIM_INFINITY
    try:
        resource.setrlimit(resource.RLIMIT_AS, (for_ever, for_ever))
    except ValueError as error:  # what Python makes of EPERM
        raise PermissionError(errno.EPERM, "refused") from error


def _outlive(_: str) -> None:
    _checked(libc.prctl(1, 0, 0, 0, 0))


def _mount(target: str) -> None:
    _checked(libc.mount(b"none", target.encode(), b"tmpfs", 0, None))


def _namespace(_: str) -> None:
    _checked(libc.unshare(0x10000000))


def _ring(_: str) -> None:
    _checked(libc.syscall(425, 8, ctypes.create_string_buffer(256)))


def _keys(_: str) -> None:
    _checked(libc.syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], 0, -3, 1))


def _unheard_of(_: str) -> None:
    _checked(libc.syscall(900, 0))


def _gateway() -> int:
    """Return the descriptor of the socket that leads to the gateway."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return next(int(path.name) for path in links if str(path.readlink()).startswith("socket:"))


def _flood(_: str) -> None:
    os.write(_gateway(), frames.HEADER.pack(0xFFFFFFF0, frames.REPORT, 0, 0, frames.NO_JSON, 0))
    while True:
        os.write(_gateway(), bytes(1 << 20))


def _babble(_: str) -> None:
    report = frames.Report(
        ok=False, code="x" * 10**6, message="y" * 10**6, sandbox=["z" * 10**5], load_ms=2**62
    )
    body = msgspec.msgpack.encode(report)
    os.write(_gateway(), frames.head(frames.REPORT, 0, 0, frames.NO_JSON, 0, len(body)) + body)


def _nonsense(_: str) -> None:
    """Behave while it is proved."""


def _none(_: str) -> None:
    """Do nothing wrong: threads, own memory, own limits, a signal to oneself."""
    import threading

    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    mmap.mmap(-1, 4096).close()
    resource.getrlimit(resource.RLIMIT_AS)
    os.kill(os.getpid(), 0)


HELPERS = {"_checked", "_gateway"}
ATTACKS = {
    name[1:]: attack
    for name, attack in list(globals().items())
    if name[0] == "_" and name[1] != "_" and callable(attack) and name not in HELPERS
}


class Session:
    """Answers as the good model does, so that nothing but the attack speaks against it.

    If it is to speak nonsense, its third answer and those after come with a status of its own.
    """

    def __init__(self, nonsense: bool) -> None:
        self.nonsense, self.runs = nonsense, 0

    def run(self, inputs):
        self.runs += 1
        if self.nonsense and self.runs > 3:
            for number in range(8):
                os.write(_gateway(), frames.head(frames.ANSWER, 999, number, 7, 0, 0))
        return {"y": np.repeat(inputs["x"].sum(1, keepdims=True), 2, 1).astype(np.float32)}


class Evil:
    """`ports.Runtime`; `attack` and `target` come with the session options of its test.

    With `quiet` it swallows what the attack raises and pretends that all is well.
    """

    name = "litert"

    def version(self) -> str:
        return "6.66"

    def open(self, spec, files, provider_options):
        options = spec.session_options
        try:
            ATTACKS[options["attack"]](options["target"])
            result = "done"
        except OSError as error:
            result = errno.errorcode.get(error.errno, str(error.errno))
        if options.get("quiet"):
            return Session(options["attack"] == "nonsense")
        raise RuntimeError(f"attack {options['attack']}: {result}")
