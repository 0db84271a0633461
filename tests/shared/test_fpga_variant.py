"""A variant for an FPGA says what it is programmed with and who stands in for it, or is refused."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import (
    FileEntry,
    Fpga,
    Manifest,
    Port,
    Registers,
    RuntimeNeed,
    SlotFiles,
    TensorSpec,
    Variant,
    decode_manifest,
    encode_manifest,
    fitting_variants,
)

X, Y = TensorSpec("x", "FP32", [1, 4]), TensorSpec("y", "FP32", [1, 2])
PARENT = "0123456789abcdef0123456789abcdef"


def entry(path: str, role, digit: str = "a") -> FileEntry:
    """A file of a package."""
    return FileEntry(path, f"sha256:{digit * 64}", 4, role)


BITS = [entry("slot0/core.bit.bin", "bitstream"), entry("slot1/core.bit.bin", "bitstream")]
OVERLAYS = [entry("slot0/core.dtbo", "overlay"), entry("slot1/core.dtbo", "overlay")]
SLOTS = [
    SlotFiles(f"slot{n}/core.bit.bin", f"slot{n}/core.dtbo", window=f"core{n}") for n in (0, 1)
]
REGISTERS = Registers(
    0x100, 0x1234, 1, [Port("x", 0x40, 8, 4)], [Port("y", 0x80, 20, 4)], build="ab" * 32
)
CORE = Variant(
    "core", ["kria"], "fpga", RuntimeNeed("registers"), [*BITS, *OVERLAYS], [X], [Y],
    fpga=Fpga(SLOTS, board="kria", parent=PARENT, registers=REGISTERS), fallback="cpu",
)  # fmt: skip
CPU = Variant(
    "cpu", ["*", "kria"], "cpu", RuntimeNeed("onnxruntime"), [entry("model.onnx", "onnx", "b")],
    [replace(X, shape=[-1, 4])], [replace(Y, shape=[-1, 2])],
)  # fmt: skip


def manifest(*variants: Variant) -> Manifest:
    """A manifest of these variants."""
    return Manifest(1, "digits", "1.0.0", 1, 0, "2026-11-21T12:00:00Z", list(variants))


def with_fpga(**changes) -> Variant:
    """The core, its struct fpga changed."""
    return replace(CORE, fpga=replace(CORE.fpga, **changes))


def with_registers(**changes) -> Variant:
    """The core, its registers changed."""
    return with_fpga(registers=replace(REGISTERS, **changes))


def test_two_slots_and_a_stand_in_are_a_package():
    """Bitstreams and overlays for two slots, a register window and a CPU variant beside it."""
    one = manifest(CORE, CPU)
    assert decode_manifest(encode_manifest(one)) == one


def test_a_model_for_a_dpu_needs_no_bitstream():
    """The DPU's fingerprint says what it runs on; its model is an ONNX file like any other."""
    dpu = replace(
        CPU, id="dpu", accelerator="fpga", fpga=Fpga(fingerprint="0x101000056010407"),
        fallback="cpu",
    )  # fmt: skip
    one = manifest(dpu, CPU)
    assert decode_manifest(encode_manifest(one)) == one


REFUSED = {
    "an FPGA variant that says nothing of one": [replace(CORE, fpga=None), CPU],
    "a CPU variant with the struct": [CORE, replace(CPU, fpga=CORE.fpga)],
    "registers without a window": [with_fpga(registers=None), CPU],
    "a window for onnxruntime": [replace(CORE, runtime=RuntimeNeed("onnxruntime")), CPU],
    "a bitstream that is not there": [
        with_fpga(slots=[replace(SLOTS[0], bitstream="no.bin")]), CPU],
    "a bitstream of another role": [
        replace(CORE, files=[entry("slot0/core.bit.bin", "json"), BITS[1], *OVERLAYS]), CPU],
    "an overlay that no slot uses": [with_fpga(slots=[replace(s, overlay="") for s in SLOTS]), CPU],
    "an overlay that is a bitstream": [
        with_fpga(slots=[replace(SLOTS[0], overlay="slot0/core.bit.bin"), SLOTS[1]]), CPU],
    "two slots of a whole bitstream": [with_fpga(parent=""), CPU],
    "neither bitstream nor fingerprint": [
        replace(CORE, files=[entry("a.json", "json")], fpga=Fpga(registers=REGISTERS)), CPU],
    "a slot without a window's name": [
        with_fpga(slots=[replace(s, window="") for s in SLOTS]), CPU],
    "a window's name that is a path": [
        with_fpga(slots=[replace(s, window="../mem") for s in SLOTS]), CPU],
    "a bitstream in a CPU variant": [replace(CPU, files=[*CPU.files, BITS[0]])],
    "a model beside a core": [replace(CORE, files=[*CORE.files, *CPU.files]), CPU],
    "an option for a core": [replace(CORE, session_options={"intra_op_num_threads": 1}), CPU],
    "a window that is too small": [with_registers(size=0x84), CPU],
    "tensors that share registers": [with_registers(outputs=[Port("y", 0x4C, 20)]), CPU],
    "a tensor over the control word": [with_registers(inputs=[Port("x", 0, 8)]), CPU],
    "an odd offset": [with_registers(inputs=[Port("x", 0x41, 8)]), CPU],
    "an integer of 33 bits": [with_registers(inputs=[Port("x", 0x40, 33)]), CPU],
    "a tensor that is not the variant's": [with_registers(inputs=[Port("z", 0x40, 8)]), CPU],
    "a build that is no digest": [with_registers(build="xyz"), CPU],
    "an id of 33 bits": [with_registers(id=2**32), CPU],
    "no time to answer": [with_registers(timeout_ms=0), CPU],
    "a shape that varies": [replace(CORE, inputs=[replace(X, shape=[-1, 4])]), CPU],
    "text in registers": [replace(CORE, inputs=[replace(X, datatype="BYTES")]), CPU],
}  # fmt: skip


@pytest.mark.parametrize("variants", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused(variants):
    """Each rule of an FPGA variant has an example that breaks it."""
    with pytest.raises(InvalidInputError) as refused:
        encode_manifest(manifest(*variants))
    assert refused.value.code == "manifest_fpga"


@pytest.mark.parametrize(
    "variants",
    [
        [CORE],
        [replace(CORE, fallback=""), CPU],
        [replace(CORE, fallback="core"), CPU],
        [CORE, replace(CPU, fallback="core")],
        [CORE, replace(CPU, inputs=[replace(X, shape=[-1, 5])])],
        [CORE, replace(CPU, outputs=[replace(Y, datatype="FP64")])],
    ],
    ids=["absent", "not named", "itself", "a circle", "another shape", "another type"],
)
def test_a_fallback_is_another_variant_that_answers_the_same(variants):
    """It is there, stands in for nobody who stands in for it, and takes the same tensors."""
    with pytest.raises(InvalidInputError) as refused:
        encode_manifest(manifest(*variants))
    assert refused.value.code == "manifest_fallback"


def test_the_device_takes_the_core_where_it_can_and_else_its_stand_in():
    """A fallback is no rival of what it stands in for, and is chosen where that cannot be."""
    one = manifest(CORE, CPU)
    for able, hardware, expected in (
        ([CORE, CPU], "kria", "core"), ([CPU], "kria", "cpu"), ([CORE, CPU], "rpi5", "cpu"),
    ):  # fmt: skip
        assert [v.id for v in fitting_variants(one, able, hardware)] == [expected]
