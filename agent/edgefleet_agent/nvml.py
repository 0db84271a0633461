"""NVIDIA's management library by ctypes: name, driver and memory of the first GPU.

It comes with the driver, and six calls need no dependency. Its memory numbers are the card's, of
all processes together, which is what an admission must know.
"""

from __future__ import annotations

import ctypes
from typing import Final, NamedTuple

LIBRARY: Final = "libnvidia-ml.so.1"
_MB = 2**20
_TEXT = 96


class Card(NamedTuple):
    """A GPU: its name, the driver's version, memory in MB in all and free just now."""

    name: str
    driver: str
    memory_mb: int
    free_mb: int


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong),
    )  # fmt: skip


def read(index: int = 0, library: str = LIBRARY) -> Card | None:
    """Return a GPU's state; None where there is no library, no driver or no such GPU.

    On a Jetson, whose GPU has no memory of its own, the library may be there and tell nothing.
    """
    try:
        lib = ctypes.CDLL(library)
    except OSError:
        return None
    try:
        if lib.nvmlInit_v2():
            return None
        try:
            return _card(lib, index)
        finally:
            lib.nvmlShutdown()
    except AttributeError:  # another library of that name
        return None


def _card(lib: ctypes.CDLL, index: int) -> Card | None:
    handle, memory = ctypes.c_void_p(), _Memory()
    name, driver = ctypes.create_string_buffer(_TEXT), ctypes.create_string_buffer(_TEXT)
    if lib.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
        return None
    if lib.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    lib.nvmlDeviceGetName(handle, name, ctypes.c_uint(_TEXT))
    lib.nvmlSystemGetDriverVersion(driver, ctypes.c_uint(_TEXT))
    texts = [buffer.value.decode("utf-8", "replace") for buffer in (name, driver)]
    return Card(texts[0], texts[1], memory.total // _MB, memory.free // _MB)
