"""A writer of flattened device trees: what `dtc` makes of an overlay, no more."""

from __future__ import annotations

import struct


def overlay(firmware: str) -> bytes:
    """Return an overlay that puts `firmware-name` into the FPGA region."""
    names = b"firmware-name\0target-path\0"
    place = {"firmware-name": 0, "target-path": 14}

    def begin(name: str) -> bytes:
        return struct.pack(">I", 1) + _padded(name.encode() + b"\0")

    def prop(name: str, value: str) -> bytes:
        data = value.encode() + b"\0"
        return struct.pack(">III", 3, len(data), place[name]) + _padded(data)

    end = struct.pack(">I", 2)
    body = b"".join([
        begin(""), begin("fragment@0"), prop("target-path", "/fpga-region"),
        begin("__overlay__"), prop("firmware-name", firmware), end, end, end, struct.pack(">I", 9),
    ])  # fmt: skip
    reserve = bytes(16)
    structs = 40 + len(reserve)
    strings = structs + len(body)
    total = strings + len(names)
    head = struct.pack(
        ">10I", 0xD00DFEED, total, structs, strings, 40, 17, 16, 0, len(names), len(body)
    )
    return head + reserve + body + names


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
