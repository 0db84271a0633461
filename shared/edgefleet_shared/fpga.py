"""What a manifest says of a variant for an FPGA: its bitstreams, and the registers of its core.

Register map 1, little-endian words of 32 bits. CTRL is as in the cores that AMD's and Intel's
high-level synthesis make: a host writes START, the core clears it and sets DONE and IDLE when the
outputs stand. ID, VERSION and BUILD tell a core from any other; BUILD is a digest that its maker
put in. Inputs and outputs have a word an element.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Final, Protocol, TypeVar

import msgspec

from edgefleet_shared.errors import InvalidInputError

CTRL: Final = 0x00
START, DONE, IDLE = 1, 2, 4
ID: Final = 0x10
VERSION: Final = 0x14
BUILD: Final = 0x18
BUILD_WORDS: Final = 8
FIRST_PORT: Final = 0x40
MAX_WINDOW: Final = 16 * 2**20
MAX_SLOTS: Final = 16

BITSTREAMS: Final = (".bit.bin", ".bin", ".pdi", ".xclbin")
OVERLAY: Final = ".dtbo"


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a tensor lies in the window, from `offset` bytes on, and how it is quantised.

    An element is an integer of `bits` bits, two's complement if `signed`, extended to its word;
    its value is the integer / 2**fraction. What does not fit saturates, halves go to the even one.
    """

    tensor: str
    offset: int
    bits: int
    fraction: int = 0
    signed: bool = True

    def bounds(self) -> tuple[int, int]:
        """Return the least and the greatest integer."""
        if self.signed:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1


class Registers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The core's register window: `size` bytes, who it must say it is, and its tensors.

    `build` is the hexadecimal digest in BUILD, '' for a core that has none; `timeout_ms` what one
    run may take.
    """

    size: int
    id: int
    version: int
    inputs: list[Port]
    outputs: list[Port]
    build: str = ""
    timeout_ms: int = 1000


class SlotFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one slot is programmed with: paths of files of the variant.

    `overlay` and `description` (dfx-mgr's accel.json or shell.json) may be missing. `window` is the
    name in /sys/class/uio/uio*/name under which the core's registers then appear.
    """

    bitstream: str
    overlay: str = ""
    description: str = ""
    window: str = ""


class Fpga(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the variant needs of an FPGA.

    `slots[n]` is for slot n of the static design whose UUID is `parent`; one slot without a parent
    is a whole bitstream (`uuid` its own). '' means that it does not matter. A model for a DPU names
    the DPU's `fingerprint` and needs no bitstream where the board is loaded already.
    """

    slots: list[SlotFiles] = []
    board: str = ""
    uuid: str = ""
    parent: str = ""
    fingerprint: str = ""
    registers: Registers | None = None

    @property
    def partial(self) -> bool:
        """Whether the bitstreams are for regions of a static design that stays."""
        return bool(self.parent)


class _Entry(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def role(self) -> str: ...


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...


T = TypeVar("T", bound=_Tensor)
DATATYPES: Final = frozenset(
    {"FP32", "FP64", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32"}
)


def check_slots(variant: str, fpga: Fpga, files: list[_Entry]) -> None:
    """Check that each slot's files are there with their roles, and that none is left over.

    Raises:
        InvalidInputError: With the first rule that is broken (code `manifest_fpga`).
    """
    if len(fpga.slots) > MAX_SLOTS or (len(fpga.slots) > 1 and not fpga.parent):
        raise _wrong(variant, "more slots than one need the UUID of the static design as parent")
    if not fpga.slots and not fpga.fingerprint:
        raise _wrong(variant, "an FPGA variant needs a bitstream, or the fingerprint of a DPU")
    if fpga.registers and not all(slot.window for slot in fpga.slots):
        raise _wrong(variant, "a core with registers needs the name of its window in each slot")
    roles = {entry.path: entry.role for entry in files}
    used: set[str] = set()
    for slot in fpga.slots:
        for path, role, endings in (
            (slot.bitstream, "bitstream", BITSTREAMS),
            (slot.overlay, "overlay", (OVERLAY,)),
            (slot.description, "json", (".json",)),
        ):
            if not path and role != "bitstream":
                continue
            if roles.get(path) != role or not path.endswith(endings):
                raise _wrong(
                    variant, f"{path!r} is no file of role {role!r} that ends in {endings[0]!r}"
                )
            used.add(path)
        if not _plain(slot.window):
            raise _wrong(variant, f"{slot.window[:80]!r} cannot be the name of a window")
    for entry in files:
        if entry.role in {"bitstream", "overlay"} and entry.path not in used:
            raise _wrong(variant, f"no slot uses {entry.path!r}")


def check_registers(variant: str, registers: Registers, inputs: list[T], outputs: list[T]) -> None:
    """Check that the window holds each tensor in a place of its own.

    Raises:
        InvalidInputError: With the first rule that is broken (code `manifest_fpga`).
    """
    if not FIRST_PORT < registers.size <= MAX_WINDOW or registers.timeout_ms < 1:
        raise _wrong(variant, "the window's size or the timeout cannot be")
    words = (registers.id, registers.version)
    if not all(0 <= word < 2**32 for word in words):
        raise _wrong(variant, "id and version are words of 32 bits")
    if len(registers.build) > 8 * BUILD_WORDS or set(registers.build) - set("0123456789abcdef"):
        raise _wrong(variant, "build is at most 64 hexadecimal digits")
    spans = sorted(
        [*_spans(variant, registers.inputs, inputs), *_spans(variant, registers.outputs, outputs)]
    )
    if any(end > begin for (_, end), (begin, _) in pairwise(spans)):
        raise _wrong(variant, "two tensors share registers")
    if not spans or spans[0][0] < FIRST_PORT or spans[-1][1] > registers.size:
        raise _wrong(variant, f"tensors lie from {FIRST_PORT:#x} on, within the window")


def _spans(variant: str, ports: list[Port], tensors: list[T]) -> Iterator[tuple[int, int]]:
    if [port.tensor for port in ports] != [tensor.name for tensor in tensors]:
        raise _wrong(variant, "the window's tensors are not those of the variant, in their order")
    for port, tensor in zip(ports, tensors, strict=True):
        if not 1 <= port.bits <= 32 or not -32 <= port.fraction <= 64 or port.offset % 4:
            raise _wrong(variant, f"the register port of {port.tensor!r} cannot be")
        if tensor.datatype not in DATATYPES or min(tensor.shape, default=1) < 1:
            raise _wrong(variant, f"{port.tensor!r} needs numbers and a shape without -1 or 0")
        yield port.offset, port.offset + 4 * prod(tensor.shape)


def _plain(name: str) -> bool:
    return len(name) <= 63 and all(c.isascii() and (c.isalnum() or c in "._-@") for c in name)


def _wrong(variant: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"FPGA variant {variant!r}: {why}.", code="manifest_fpga")
