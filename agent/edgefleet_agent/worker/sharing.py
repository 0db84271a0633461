"""Applications' memory, mapped into a worker: by client and slot, as the gateway hands it over."""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import select
import socket
import threading
import weakref
from collections.abc import Callable

from edgefleet_agent.ipc import fast, mapping, memfd
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError

_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_FAILED = ctypes.c_void_p(-1).value


class Sharing:
    """Reads the gateway's messages, in a thread of its own and when a slot is not known yet.

    Args:
        sock: The worker's end of the socketpair of `mapping`.
        forget: Called with a client of which a slot has gone; views of it must go too.
    """

    def __init__(self, sock: socket.socket, forget: Callable[[int], object]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._forget = forget
        self._lock = threading.Lock()
        self._maps: dict[tuple[int, int], tuple[int, memoryview]] = {}
        self.changes = 0  # what was made of a slot before this moved must not be kept

    def start(self) -> None:
        """Let a thread follow the gateway, so that memory goes when its client does."""
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        waiting = select.poll()
        waiting.register(self._sock, select.POLLIN)
        while self._read():
            waiting.poll()

    def find(self, client: int, slot: int, access: int) -> memoryview:
        """Return the memory of a slot.

        Raises:
            InvalidInputError: There is none, or it is for the other direction.
        """
        if (client, slot) not in self._maps:
            self._read()
        found = self._maps.get((client, slot))
        if found is None or found[0] != access:
            raise InvalidInputError(f"Slot {slot} is not known to the worker.")
        return found[1]

    def _read(self) -> bool:
        """Take every message that is there; False once there will be no more."""
        with self._lock:
            while True:
                try:
                    data, ancillary, _, _ = self._sock.recvmsg(
                        mapping.MESSAGE.size, _SPACE, socket.MSG_CMSG_CLOEXEC
                    )
                except BlockingIOError:
                    return True
                except OSError:
                    return False
                if len(data) != mapping.MESSAGE.size:
                    return False
                self._take(data, _descriptor(ancillary))

    def _take(self, data: bytes, fd: int) -> None:
        kind, client, slot, access, size = mapping.MESSAGE.unpack(data)
        self.changes += 1
        self._maps.pop((client, slot), None)
        self._forget(client)
        if fd < 0:
            return
        try:
            if kind == mapping.MAP:
                self._maps[client, slot] = access, _mapped(fd, size, access)
        except (EdgeFleetError, OSError, ValueError):
            pass  # a request that names the slot is told that it is not known
        finally:
            os.close(fd)


def _mapped(fd: int, size: int, access: int) -> memoryview:
    """Map a slot; looked at again, because SIGBUS would end this process and not the gateway.

    By the C library: a mapping of Python's keeps a descriptor, and a worker may have few.
    """
    writable = access == fast.WRITE
    memfd.check(fd, size, writable=writable)
    rights = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    address = _libc.mmap(None, size, rights, mmap.MAP_SHARED, fd, 0)
    if address in {None, _FAILED}:
        raise OSError(ctypes.get_errno(), "mmap")
    memory = (ctypes.c_char * size).from_address(address)
    unmap = weakref.finalize(memory, _libc.munmap, ctypes.c_void_p(address), ctypes.c_size_t(size))
    unmap.atexit = False
    view = memoryview(memory).cast("B")
    return view if writable else view.toreadonly()


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= 4:
            return int.from_bytes(data[:4], "little")
    return -1
