"""An FPGA variant of a package: its bitstreams and overlays, and a core's golden vectors."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from edgefleet_provisioning import container_build, golden
from edgefleet_provisioning.arrays import read_npz
from edgefleet_provisioning.errors import LintError
from edgefleet_provisioning.variant_build import GOLDEN_PATH, Blob, Built, blob, hash_file
from edgefleet_provisioning.variants_file import Wanted
from edgefleet_shared import fpga_headers
from edgefleet_shared.errors import IncompatibleError, InvalidInputError
from edgefleet_shared.package import FileEntry, Role, SlotFiles, TensorSpec


def files(wanted: Wanted, folder: Path) -> tuple[Wanted, list[Blob]]:
    """Return the variant with its files' paths in the package, and the files.

    Args:
        wanted: An FPGA variant.
        folder: Where the file of variants lies.

    Raises:
        InvalidInputError: A file cannot be read (code `bad_variants`).
        LintError: A header is not what its name says.
    """
    assert wanted.fpga is not None
    found: dict[str, Blob] = {}
    slots = []
    for number, slot in enumerate(wanted.fpga.slots):
        paths = {}
        for field, role in _ROLES.items():
            name: str = getattr(slot, field)
            if not name:
                continue
            path = f"{wanted.id}/slot{number}/{name.rpartition('/')[2]}"
            found[path] = _blob(path, folder / name, role)
            paths[field] = path
        slots.append(structs.replace(slot, **paths))
        _lint(slots[-1], found, wanted.fpga.uuid)
    fpga = structs.replace(wanted.fpga, slots=slots)
    return structs.replace(wanted, fpga=fpga), list(found.values())


def core(wanted: Wanted, first: Built, extra: list[Blob], folder: Path) -> Built:
    """Return a core with the tensors of the first variant, one call at a time.

    Its golden file must hold the answers too: nobody here can run it. Without one the first
    variant's answers are compared, within the manifest's tolerances.

    Raises:
        InvalidInputError: The golden file does not fit the tensors.
    """
    report = first.report._replace(
        inputs=[_single(t) for t in first.report.inputs],
        outputs=[_single(t) for t in first.report.outputs],
    )
    beside = [one for one in first.blobs if one.entry.role in {"golden", "labels"}]
    cases = first.cases
    if wanted.golden:
        arrays = read_npz(folder / wanted.golden, "golden file")
        found = container_build.cases_of(
            arrays, container_build.Tensors(report.inputs, report.outputs)
        )
        data = blob(f"{wanted.id}/{GOLDEN_PATH}", "golden", golden.encode(found), "")
        beside = [data, *(one for one in beside if one.entry.role != "golden")]
        cases = len(found)
    return Built(wanted, report, [*extra, *beside], cases)


_ROLES: dict[str, Role] = {"bitstream": "bitstream", "overlay": "overlay", "description": "json"}


def _single(tensor: TensorSpec) -> TensorSpec:
    return structs.replace(tensor, shape=[1 if size == -1 else size for size in tensor.shape])


def _blob(path: str, source: Path, role: Role) -> Blob:
    try:
        digest, size = hash_file(source)
    except OSError as error:
        raise InvalidInputError(
            f"{source} cannot be read: {error.strerror or error}.",
            code="bad_variants",
            hint="Name an FPGA's files relative to the file of variants.",
        ) from error
    return Blob(FileEntry(path, digest, size, role), source)


def _lint(slot: SlotFiles, found: dict[str, Blob], uuid: str) -> None:
    """Look at the headers as a device will."""
    bitstream = found[slot.bitstream]
    try:
        with Path(str(bitstream.source)).open("rb") as file:
            head = file.read(fpga_headers.HEAD_BYTES)
        fpga_headers.check_bitstream(slot.bitstream, head, bitstream.entry.size, uuid)
        if slot.overlay:
            data = Path(str(found[slot.overlay].source)).read_bytes()
            name = slot.bitstream.rpartition("/")[2]
            fpga_headers.check_overlay(slot.overlay, data, name)
    except IncompatibleError as error:
        raise LintError(str(error), code=error.code) from error
