"""What can be told of a bitstream or an overlay before hardware sees it. Pure; bounds everything.

Only formats that are public are judged. A file that passes may still be wrong for the device; the
FPGA's own check and the golden vectors come after.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from edgefleet_shared.errors import IncompatibleError

HEAD_BYTES: Final = 4096
"""So much of a bitstream is looked at."""
MAX_OVERLAY: Final = 2**20

_SYNC: Final = (b"\xaa\x99\x55\x66", b"\x66\x55\x99\xaa")
_BIT_FILE: Final = b"\x00\x09\x0f\xf0\x0f\xf0"
_XCLBIN: Final = b"xclbin2\x00"
_XCLBIN_LENGTH, _XCLBIN_UUID = 304, 416
_FDT = struct.Struct(">10I")
_FDT_MAGIC: Final = 0xD00DFEED
_BEGIN, _END, _PROPERTY, _NOP, _LAST = 1, 2, 3, 4, 9


def check_bitstream(path: str, head: bytes, size: int, uuid: str = "") -> None:
    """Refuse a bitstream that is visibly not what its name says.

    Args:
        path: Its path in the package; the ending tells the format.
        head: Its first `HEAD_BYTES` bytes.
        size: Its length.
        uuid: What an xclbin must be, in hexadecimal; '' = anything.

    Raises:
        IncompatibleError: Code `fpga_bitstream`.
    """
    if head.startswith(_BIT_FILE):
        raise _bad(path, "is a .bit file with Vivado's header", "Convert it with bootgen.")
    if path.endswith(".bit.bin"):
        if not any(sync in head for sync in _SYNC):
            raise _bad(path, "has no sync word in its first 4 KiB", "Convert it with bootgen.")
    elif path.endswith(".xclbin"):
        if len(head) < _XCLBIN_UUID + 16 or not head.startswith(_XCLBIN):
            raise _bad(path, "is no xclbin")
        (length,) = struct.unpack_from("<Q", head, _XCLBIN_LENGTH)
        if length != size:
            raise _bad(path, f"says that it has {length} bytes, and has {size}")
        found = head[_XCLBIN_UUID : _XCLBIN_UUID + 16].hex()
        if uuid and found != uuid.replace("-", "").lower():
            raise _bad(path, f"has the UUID {found}, and the package says {uuid}")
    elif size < 16:
        raise _bad(path, "is empty")


def check_overlay(path: str, data: bytes, bitstream: str) -> None:
    """Refuse an overlay that is none, or that names other firmware than its own bitstream.

    Args:
        path: Its path in the package.
        data: All of it.
        bitstream: The name by which the kernel will look for the bitstream.

    Raises:
        IncompatibleError: Code `fpga_overlay`.
    """
    try:
        names = list(firmware_names(data))
    except (ValueError, struct.error, IndexError) as error:
        raise IncompatibleError(
            f"The overlay {path!r} is no device tree: {error}.", code="fpga_overlay"
        ) from error
    for name in names:
        if name != bitstream:
            raise IncompatibleError(
                f"The overlay {path!r} asks for the firmware {name[:80]!r}; its bitstream is "
                f"{bitstream!r}.",
                code="fpga_overlay",
                hint="firmware-name must be the file name of the slot's bitstream.",
            )


def firmware_names(data: bytes) -> Iterator[str]:
    """Yield what the properties `firmware-name` of a flattened device tree say.

    Raises:
        ValueError: It is not one.
    """
    if len(data) < _FDT.size or len(data) > MAX_OVERLAY:
        raise ValueError(f"it has {len(data)} bytes")
    magic, total, structs, strings, *_, strings_size, structs_size = _FDT.unpack_from(data)
    if magic != _FDT_MAGIC:
        raise ValueError("the magic number is missing")
    if total > len(data) or structs + structs_size > total or strings + strings_size > total:
        raise ValueError("its parts lie beyond its end")
    names, place, end = data[strings : strings + strings_size], structs, structs + structs_size
    while place + 4 <= end:
        (token,) = struct.unpack_from(">I", data, place)
        place += 4
        if token == _BEGIN:
            place = _aligned(data.index(b"\0", place, end) + 1)
        elif token == _PROPERTY:
            length, offset = struct.unpack_from(">II", data, place)
            place += 8
            if place + length > end:
                raise ValueError("a property is longer than the tree")
            if names[offset : names.index(b"\0", offset)] == b"firmware-name":
                yield data[place : place + length].rstrip(b"\0").decode("ascii", "replace")
            place = _aligned(place + length)
        elif token == _LAST:
            return
        elif token not in {_END, _NOP}:
            raise ValueError(f"token {token} is unknown")
    raise ValueError("it has no end")


def _aligned(place: int) -> int:
    return (place + 3) & ~3


def _bad(path: str, why: str, hint: str = "") -> IncompatibleError:
    return IncompatibleError(f"The bitstream {path!r} {why}.", code="fpga_bitstream", hint=hint)
