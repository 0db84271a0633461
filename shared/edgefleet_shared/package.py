"""The package manifest: what a model is made of, what it runs on, how it proves itself.

A package is a set of raw blobs addressed by sha256 and this manifest, whose exact bytes are the TUF
target `models/<name>/<version>/manifest.json`. The blobs lie in an OCI image layout; there is no
archive and no code: a file that may execute has no role and cannot be expressed.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

import msgspec

from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_digest, check_name, check_version

MANIFEST_MAX_BYTES = 64 * 1024
MAX_FILES = 256
MEDIA_TYPE = "application/vnd.edgefleet.package.v1+json"
PATH_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/")

Role = Literal["onnx", "onnx_external", "tflite", "labels", "json", "golden"]
"""What a file is for. Python, pickles, shared objects and archives have no role."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
"""Element types, by their names in the Open Inference Protocol v2."""

SESSION_OPTIONS = frozenset({
    "intra_op_num_threads", "inter_op_num_threads", "enable_cpu_mem_arena", "enable_mem_pattern",
    "graph_optimization_level", "execution_mode",
})  # fmt: skip
"""Session options that a package may set. Anything that names a path or loads code is not here."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: OIP name, datatype and shape; -1 marks a dimension that varies."""

    name: str
    datatype: Datatype
    shape: list[int]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One blob: its path in the package, digest, size in bytes and role."""

    path: str
    digest: str
    size: int
    role: Role
    media_type: str = "application/octet-stream"
    license: str = ""


class RuntimeNeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What executes the variant: runtime name, lowest version, providers by preference, opsets."""

    name: Literal["onnxruntime", "litert", "container"]
    min_version: str = ""
    providers: list[str] = []
    opsets: dict[str, int] = {}


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the variant may take: resident memory in MB, seconds to load and prove, disk in MB."""

    memory_mb: int = 1024
    load_s: int = 60
    disk_mb: int = 4096


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Golden vectors: the path of a safetensors file and the tolerances of its comparison.

    The file's tensors are named `<case>.input.<name>` and `<case>.output.<name>`, case = 0, 1, ...;
    each case is one call. An output agrees if |got - want| <= atol + rtol * |want|; integers, bools
    and bytes must be equal.
    """

    path: str
    cases: int
    rtol: float = 1e-3
    atol: float = 1e-4


class ReferenceHistogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training distribution of one input feature, for drift.

    `edges` has n ascending values; `counts` has n + 2: below the first edge, between each pair
    (left-closed), at or above the last, and not a number.
    """

    tensor: str
    feature: int
    edges: list[float]
    counts: list[int]


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One build of the model for some hardware; `hardware` holds exact strings, `*` fits any."""

    id: str
    hardware: list[str]
    accelerator: Literal["cpu", "gpu", "fpga", "npu"]
    runtime: RuntimeNeed
    files: list[FileEntry]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    limits: Limits = Limits()
    golden: Golden | None = None
    session_options: dict[str, int | str | bool] = {}

    def file(self, role: Role) -> FileEntry:
        """Return the only file of a role.

        Raises:
            InvalidInputError: There is none, or more than one.
        """
        found = [entry for entry in self.files if entry.role == role]
        if len(found) != 1:
            raise InvalidInputError(
                f"Variant {self.id!r} has {len(found)} files of role {role!r} and needs one.",
                code="manifest_files",
            )
        return found[0]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model version, whole. `release_counter` only grows; `security_floor` forbids what is older.

    `created` is RFC 3339 UTC; `license` an SPDX expression.
    """

    schema: Literal[1]
    name: str
    version: str
    release_counter: int
    security_floor: int
    created: str
    variants: list[Variant]
    license: str = ""
    description: str = ""
    labels: list[str] = []
    reference: list[ReferenceHistogram] = []
    provenance: dict[str, str] = {}


def target_path(name: str, version: str) -> str:
    """Return the TUF target path of a model version's manifest."""
    return f"models/{name}/{version}/manifest.json"


def publisher_role(name: str) -> str:
    """Return the TUF role that may sign the versions of one model."""
    return f"publisher/{name}"


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes that are signed. Decoding them gives an equal manifest.

    Raises:
        InvalidInputError: The manifest breaks a rule of `check_manifest` or is over 64 kB.
    """
    check_manifest(manifest)
    data = msgspec.json.format(strict_json.encode(manifest), indent=1)
    if len(data) > MANIFEST_MAX_BYTES:
        raise InvalidInputError(
            f"The manifest has {len(data)} bytes; {MANIFEST_MAX_BYTES} is the limit.",
            code="manifest_too_large",
            hint="Give fewer reference features or fewer files.",
        )
    return data


def decode_manifest(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        InvalidInputError: Malformed, or it breaks a rule of `check_manifest`.
    """
    manifest = strict_json.decode(data, Manifest, max_bytes=MANIFEST_MAX_BYTES, what="manifest")
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Check what types cannot say: names, paths, counters, options, references between parts.

    Raises:
        InvalidInputError: With the first rule that is broken.
    """
    check_name(manifest.name, "model")
    check_version(manifest.version)
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
    if not 1 <= len(variant.files) <= MAX_FILES:
        raise InvalidInputError(
            f"Variant {variant.id!r} has {len(variant.files)} files; 1 to {MAX_FILES} are allowed.",
            code="manifest_files",
        )
    seen: set[str] = set()
    for entry in variant.files:
        check_path(entry.path)
        check_digest(entry.digest)
        if entry.size < 0:
            raise InvalidInputError(f"{entry.path} has a negative size.", code="manifest_files")
        seen.add(unicodedata.normalize("NFC", entry.path).casefold())
    if len(seen) != len(variant.files):
        raise InvalidInputError(
            f"Two paths of variant {variant.id!r} differ only in case.", code="manifest_path"
        )
    if foreign := set(variant.session_options) - SESSION_OPTIONS:
        raise InvalidInputError(
            f"A package may not set the session option {min(foreign)!r}.",
            code="manifest_session_option",
            hint=f"Allowed: {', '.join(sorted(SESSION_OPTIONS))}.",
        )
    if variant.golden and variant.golden.path not in {entry.path for entry in variant.files}:
        raise InvalidInputError(
            f"The golden file {variant.golden.path!r} is not among the variant's files.",
            code="manifest_golden",
        )


def choose_variant(manifest: Manifest, hardware: str, accelerators: frozenset[str]) -> Variant:
    """Return the one variant for this hardware id and these usable accelerators.

    An exact hardware string wins over `*`; among equals, the manifest's order decides nothing: two
    that fit equally well are refused, so that no one but the publisher chooses.

    Raises:
        InvalidInputError: code `no_compatible_variant` or `ambiguous_variant`.
    """
    usable = [v for v in manifest.variants if v.accelerator in accelerators]
    exact = [v for v in usable if hardware in v.hardware]
    found = exact or [v for v in usable if "*" in v.hardware]
    if len(found) == 1:
        return found[0]
    offered = ", ".join(f"{v.id} ({v.accelerator}: {' '.join(v.hardware)})" for v in usable)
    if not found:
        raise InvalidInputError(
            f"No variant of {manifest.name} {manifest.version} runs on {hardware!r}.",
            code="no_compatible_variant",
            hint=f"Usable here by accelerator: {offered or 'none'}.",
        )
    raise InvalidInputError(
        f"{len(found)} variants of {manifest.name} {manifest.version} fit {hardware!r}: {offered}.",
        code="ambiguous_variant",
        hint="Publish a version in which exactly one variant fits.",
    )
