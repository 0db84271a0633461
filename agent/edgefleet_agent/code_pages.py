"""Let go of the pages of libraries that starting or loading has touched and nothing needs again.

Importing onnxruntime, or optimising a graph with it, runs megabytes of code once; they stay mapped
for as long as the process lives. Only pages that are the file's own, unchanged, are let go: the
next use finds them in the page cache, at about a microsecond for 64 kB. What a library has
relocated or written is not touched.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Final, NamedTuple

_DONTNEED: Final = 4
LEAST_KB: Final = 256
"""Smaller mappings are not worth a system call."""
_LIBRARY: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r-[x-]p .*\.so.*\n"
    r"(?:[A-Z].*\n)*?Rss: +([0-9]+) kB\n"
    r"(?:[A-Z].*\n)*?Anonymous: +([0-9]+) kB\n",
    re.MULTILINE,
)


class Mapping(NamedTuple):
    """One mapping of a file: where it is, and kilobytes of it that are in memory."""

    start: int
    end: int
    resident_kb: int


def let_go(smaps: Path = Path("/proc/self/smaps")) -> int:
    """Unmap this process's unchanged pages of libraries; return how many kilobytes that were.

    A kernel that tells or does none of it costs the memory and nothing else.
    """
    try:
        found = unchanged(smaps.read_text())
    except OSError:
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(
        one.resident_kb
        for one in found
        if not libc.madvise(one.start, one.end - one.start, _DONTNEED)
    )


def unchanged(smaps: str) -> list[Mapping]:
    """Return the mappings in `smaps` that hold nothing but what their library's file holds.

    Such a mapping is private, cannot be written and has no anonymous page.
    """
    return [
        Mapping(int(start, 16), int(end, 16), int(resident))
        for start, end, resident, anonymous in _LIBRARY.findall(smaps)
        if int(resident) >= LEAST_KB and not int(anonymous)
    ]
