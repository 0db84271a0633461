"""What the manifest's types cannot say: names, paths, counters, options, and how parts agree."""

from __future__ import annotations

import re
from itertools import pairwise
from math import inf

from edgefleet_shared import fpga
from edgefleet_shared.batching_rules import check_batching
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_digest, check_name, check_version
from edgefleet_shared.manifest import (
    ContainerNeed,
    FileEntry,
    Golden,
    Manifest,
    ReferenceHistogram,
    TensorSpec,
    Variant,
)
from edgefleet_shared.processing_rules import check_processing
from edgefleet_shared.times import parse_time

MAX_FILES = 256
PATH_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")

CODE_SUFFIXES = frozenset({
    "so", "dll", "dylib", "exe", "py", "pyc", "pyd", "sh", "js", "jar", "wasm", "whl",
    "pkl", "pickle", "joblib", "npy", "npz", "pt", "pth", "ckpt", "h5", "keras", "mar",
    "tar", "tgz", "zip", "gz", "bz2", "xz", "zst", "7z",
})  # fmt: skip
"""Endings of files that run, that run when they are read, or that hold others unseen.

No role takes them; a name that says so is refused on sight, before anything is fetched.
"""

SESSION_OPTIONS = frozenset({
    "intra_op_num_threads", "inter_op_num_threads", "enable_cpu_mem_arena", "enable_mem_pattern",
    "graph_optimization_level", "execution_mode",
})  # fmt: skip
"""Session options of ONNX that a package may set. What names a path or loads code is not here."""

LITERT_OPTIONS = frozenset({"num_threads"})
"""The same of TFLite models."""


_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
IMAGE = re.compile(
    rf"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*@sha256:[0-9a-f]{{64}}"
)
"""A container image by digest alone, as the OCI distribution writes it; 255 characters at most."""

CONCURRENCY_MAX, CPUS_MAX, PIDS_MAX = 64, 1024, 32768
"""What a container may ask for at most: requests at once, processors, processes."""

DATA_ROLES = frozenset({"labels", "json", "golden"})
"""Roles of files that a container may come with; its model is in the image."""


def check_manifest(manifest: Manifest) -> None:
    """Check what types cannot say: names, paths, counters, options, references between parts.

    Raises:
        InvalidInputError: With the first rule that is broken.
    """
    check_name(manifest.name, "model")
    check_version(manifest.version)
    parse_time(manifest.created)
    if manifest.release_counter < 1 or not 0 <= manifest.security_floor <= manifest.release_counter:
        raise InvalidInputError(
            "The counters must keep 1 <= release_counter and 0 <= security_floor <= "
            "release_counter.",
            code="manifest_counters",
        )
    if not manifest.variants or len({v.id for v in manifest.variants}) != len(manifest.variants):
        raise InvalidInputError(
            "A manifest needs at least one variant, each with its own id.",
            code="manifest_variants",
        )
    for variant in manifest.variants:
        _check_variant(variant)
        _check_fallback(variant, manifest.variants)
    for reference in manifest.reference:
        _check_reference(reference)
    files = {entry for variant in manifest.variants for entry in variant.files}
    if len({entry.digest for entry in files}) != len({(e.digest, e.size) for e in files}):
        raise InvalidInputError("One digest has two sizes.", code="manifest_files")


def check_path(path: str) -> None:
    """Check a file path of a package.

    Raises:
        InvalidInputError: Absolute, hidden, `..`, empty part, foreign character or over 200 long.
    """
    parts = path.split("/")
    if (
        not 1 <= len(path) <= 200
        or not PATH_CHARACTERS.issuperset(path)
        or any(not part or part.startswith(".") for part in parts)
    ):
        raise InvalidInputError(
            f"{path[:80]!r} cannot be a path in a package.",
            code="manifest_path",
            hint="Use A-Z a-z 0-9 . _ - and /, no part empty or starting with a dot.",
        )


def _check_variant(variant: Variant) -> None:
    check_name(variant.id, "variant")
    if not variant.hardware or not variant.inputs or not variant.outputs:
        raise InvalidInputError(
            f"Variant {variant.id!r} needs hardware, inputs and outputs.", code="manifest_variants"
        )
    _check_runtime(variant)
    fewest = 0 if variant.runtime.image else 1
    if not fewest <= len(variant.files) <= MAX_FILES:
        raise InvalidInputError(
            f"Variant {variant.id!r} has {len(variant.files)} files; 1 to {MAX_FILES} are allowed.",
            code="manifest_files",
        )
    for entry in variant.files:
        check_path(entry.path)
        check_digest(entry.digest)
        if entry.path.rpartition(".")[2].lower() in CODE_SUFFIXES:
            raise InvalidInputError(
                f"{entry.path!r} is named as code or as an archive, and a package holds neither.",
                code="manifest_code",
                hint="Pre- and post-processing are declared; code runs as a container variant.",
            )
        if entry.size < 0:
            raise InvalidInputError(f"{entry.path} has a negative size.", code="manifest_files")
    if len({entry.path.lower() for entry in variant.files}) != len(variant.files):
        raise InvalidInputError(
            f"Two paths of variant {variant.id!r} are the same but for case.", code="manifest_path"
        )
    for tensors in (variant.inputs, variant.outputs):
        _check_tensors(variant.id, tensors)
    limits = variant.limits
    if min(limits.memory_mb, limits.load_s, limits.disk_mb, limits.device_memory_mb + 1) < 1:
        raise InvalidInputError(
            f"The limits of variant {variant.id!r} must be positive.", code="manifest_limits"
        )
    allowed = LITERT_OPTIONS if variant.runtime.name == "litert" else SESSION_OPTIONS
    if foreign := set(variant.session_options) - allowed:
        raise InvalidInputError(
            f"A package may not set the session option {min(foreign)!r}.",
            code="manifest_session_option",
            hint=f"Allowed: {', '.join(sorted(allowed))}.",
        )
    if variant.golden:
        _check_golden(variant.golden, variant.files)
    _check_fpga(variant)
    check_processing(variant)
    check_batching(variant)


def _check_fallback(variant: Variant, variants: list[Variant]) -> None:
    if not variant.fallback:
        if variant.accelerator == "fpga" and any(v.accelerator != "fpga" for v in variants):
            raise InvalidInputError(
                f"FPGA variant {variant.id!r} names none of the others as its fallback.",
                code="manifest_fallback",
                hint="It is what answers while the FPGA is programmed.",
            )
        return
    named = [other for other in variants if other.id == variant.fallback]
    if not named or named[0].accelerator == "fpga" or named[0].fallback or named[0].runtime.image:
        raise InvalidInputError(
            f"The fallback {variant.fallback[:80]!r} of variant {variant.id!r} must be another "
            "variant, without a fallback of its own, that needs neither an FPGA nor a container.",
            code="manifest_fallback",
        )
    mine = [*variant.inputs, *variant.outputs]
    theirs = [*named[0].inputs, *named[0].outputs]
    if len(variant.inputs) != len(named[0].inputs) or not _takes(theirs, mine):
        raise InvalidInputError(
            f"The fallback of variant {variant.id!r} has other inputs or outputs.",
            code="manifest_fallback",
            hint="Applications must not notice which of the two answers.",
        )


def _takes(wide: list[TensorSpec], narrow: list[TensorSpec]) -> bool:
    """Return whether tensors of the one signature are tensors of the other too."""
    return len(wide) == len(narrow) and all(
        (w.name, w.datatype, len(w.shape)) == (n.name, n.datatype, len(n.shape))
        and all(a in {-1, b} for a, b in zip(w.shape, n.shape, strict=True))
        for w, n in zip(wide, narrow, strict=True)
    )


def _check_fpga(variant: Variant) -> None:
    """Check what only an FPGA variant has, and that no other has it."""
    said = variant.fpga
    if (said is None) == (variant.accelerator == "fpga") or (
        (variant.runtime.name == "registers") != bool(said and said.registers)
    ):
        raise InvalidInputError(
            f"Variant {variant.id!r}: accelerator 'fpga' needs the struct fpga, runtime "
            "'registers' its registers, and no other has them.",
            code="manifest_fpga",
        )
    fpga.check_slots(variant.id, said or fpga.Fpga(fingerprint="-"), list(variant.files))
    if said and said.registers:
        fpga.check_registers(variant.id, said.registers, variant.inputs, variant.outputs)
        foreign = {e.role for e in variant.files} - DATA_ROLES - {"bitstream", "overlay"}
        if foreign or variant.session_options:
            raise InvalidInputError(
                f"Variant {variant.id!r} is a core in an FPGA and has model files or session "
                "options.",
                code="manifest_fpga",
            )


def _check_runtime(variant: Variant) -> None:
    """Check that an image is named by its digest, by a container variant and by no other."""
    image, container = variant.runtime.image, variant.runtime.name == "container"
    if not variant.runtime.cpu_fallback and variant.accelerator == "cpu":
        raise InvalidInputError(
            f"Variant {variant.id!r} runs on the CPU and forbids it.", code="manifest_variants"
        )
    if bool(image) != container:
        raise InvalidInputError(
            f"Variant {variant.id!r}: runtime 'container' needs an image, and no other has one.",
            code="manifest_image",
        )
    if container and (len(image) > 255 or not IMAGE.fullmatch(image)):
        raise InvalidInputError(
            f"{image[:80]!r} cannot be the image of variant {variant.id!r}.",
            code="manifest_image",
            hint="Name it by its digest alone, NAME@sha256:<hex>; a tag may change its meaning.",
        )
    _check_container(variant)
    foreign = [entry.path for entry in variant.files if entry.role not in DATA_ROLES]
    if container and (foreign or variant.session_options):
        raise InvalidInputError(
            f"The container variant {variant.id!r} has model files or session options beside its "
            "image.",
            code="manifest_image",
        )


def _check_container(variant: Variant) -> None:
    """Check what a container may take and how it is asked; no other runtime has any of it."""
    need = variant.runtime.container
    if variant.runtime.name != "container":
        if need != ContainerNeed():
            raise InvalidInputError(
                f"Variant {variant.id!r} is no container and has a container's settings.",
                code="manifest_container",
            )
        return
    if need.served_as:
        check_name(need.served_as, "model")
    if not (
        0 <= need.port < 65536
        and 1 <= need.concurrency <= CONCURRENCY_MAX
        and 0 <= need.cpus <= CPUS_MAX
        and 1 <= need.pids <= PIDS_MAX
    ):
        raise InvalidInputError(
            f"The container variant {variant.id!r} asks for what no container gets.",
            code="manifest_container",
            hint=f"port 0 to 65535, concurrency 1 to {CONCURRENCY_MAX}, cpus 0 to {CPUS_MAX}, "
            f"pids 1 to {PIDS_MAX}.",
        )


def _check_golden(golden: Golden, files: list[FileEntry]) -> None:
    if golden.path not in {entry.path for entry in files if entry.role == "golden"}:
        raise InvalidInputError(
            f"The golden file {golden.path!r} is not among the variant's files of that role.",
            code="manifest_golden",
        )
    if golden.cases < 1 or not 0 <= golden.rtol < inf or not 0 <= golden.atol < inf:
        raise InvalidInputError(
            "Golden vectors need at least one case, and tolerances that are not negative.",
            code="manifest_golden",
        )


def _check_tensors(variant: str, tensors: list[TensorSpec]) -> None:
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors) or "" in names:
        raise InvalidInputError(
            f"Inputs and outputs of variant {variant!r} need a name each, and each its own.",
            code="manifest_tensors",
        )
    for tensor in tensors:
        if min(tensor.shape, default=0) < -1:
            raise InvalidInputError(
                f"Tensor {tensor.name!r} has the shape {tensor.shape}; only -1 means any size.",
                code="manifest_tensors",
            )


def _check_reference(reference: ReferenceHistogram) -> None:
    edges, counts = reference.edges, reference.counts
    if (
        not edges
        or reference.feature < 0
        or len(counts) != len(edges) + 2
        or min(counts) < 0
        or not all(low < high for low, high in pairwise([-inf, *edges, inf]))
    ):
        raise InvalidInputError(
            f"The reference histogram of {reference.tensor!r} feature {reference.feature} needs n "
            "ascending edges and n + 2 counts.",
            code="manifest_reference",
        )
