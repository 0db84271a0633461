"""The file of `--variants`: further builds of the same model, in TOML.

Each `[[variant]]` names its `model`, ONNX or TFLite, by a path relative to the file, or the `image`
of a container, and says what it is for.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name
from edgefleet_shared.package import MANIFEST_MAX_BYTES, Batching, ContainerNeed, Fpga

MAX_VARIANTS = 32
FIRST = "cpu"
"""The id of the variant that the command line describes."""


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One variant; what is left out is as the command line's own variant has it.

    Attributes:
        id: Its name among the variants.
        hardware: Hardware ids that it is for.
        model: The model's file.
        image: A container's image, by digest; instead of `model`.
        accelerator: What it runs on.
        providers: Execution providers by preference; for a CPU they are known.
        golden: An npz of its own; by default the first variant's inputs, answered anew.
        processing: Its steps, TOML or JSON; by default the command line's.
        memory_mb: Memory it may take; by default by its size.
        device_memory_mb: Of that, on the accelerator.
        load_s: Seconds it may take to load and prove.
        session_options: As a manifest has them.
        cpu_fallback: Whether nodes of it may run on the CPU.
        fallback: The variant that answers while this one cannot.
        container: How a container is asked, and what it may take.
        batching: As a manifest has it; that of the command line is the first variant's alone.
        fpga: As a manifest has it; a core with registers needs no `model`. Its files are named
            relative to the file of variants.
    """

    id: str
    hardware: list[str]
    model: str = ""
    image: str = ""
    accelerator: Literal["cpu", "gpu", "fpga", "npu"] = "cpu"
    providers: list[str] = []
    golden: str = ""
    processing: str = ""
    memory_mb: int | None = None
    device_memory_mb: int = 0
    load_s: int = 60
    session_options: dict[str, int | str | bool] = {}
    cpu_fallback: bool = True
    fallback: str = ""
    container: ContainerNeed = ContainerNeed()
    batching: Batching | None = None
    fpga: Fpga | None = None

    @property
    def is_core(self) -> bool:
        """Whether it is a core in an FPGA, which has no model file."""
        return self.fpga is not None and self.fpga.registers is not None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    variant: list[Wanted]


def read(path: Path) -> list[Wanted]:
    """Return the variants of a file.

    Raises:
        InvalidInputError: It cannot be read, has an unknown field, or one is neither a model nor a
            container (code `bad_variants`).
    """
    try:
        data = path.read_bytes()
        if len(data) > MANIFEST_MAX_BYTES:
            raise _bad(path, "it is longer than a manifest may be")
        found = msgspec.convert(tomllib.loads(data.decode()), _File).variant
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise _bad(path, str(error)) from error
    if not 1 <= len(found) <= MAX_VARIANTS:
        raise _bad(path, f"it has {len(found)} variants; 1 to {MAX_VARIANTS} are allowed")
    names = [one.id for one in found]
    if FIRST in names or len(set(names)) < len(names):
        raise _bad(path, f"every variant needs an id of its own, other than {FIRST!r}")
    for one in found:
        check_name(one.id, "variant")
        if bool(one.model) + bool(one.image) + one.is_core != 1:
            raise _bad(path, f"variant {one.id!r} must be a model, an image or a core of an FPGA")
    return found


def _bad(path: Path, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The variants {path} cannot be read: {why.rstrip('.')}.",
        code="bad_variants",
        hint='Write [[variant]] with id = "lite", hardware = ["rpi4"], model = "digits.tflite".',
    )
