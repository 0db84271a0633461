"""The types of a package manifest; `package` reads and writes it, `manifest_rules` checks it."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.fpga import Fpga
from edgefleet_shared.processing import Processing

Role = Literal[
    "onnx", "onnx_external", "tflite", "labels", "json", "golden", "bitstream", "overlay"
]
"""What a file is for. Python, pickles, shared objects and archives have no role.

`bitstream` is what an FPGA is programmed with, `overlay` a device-tree overlay that goes with it.
"""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip
"""Element types, by their names in the Open Inference Protocol v2."""


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


class ContainerNeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a container is asked, and what it may take beside memory.

    `port`: where its server listens on TCP; 0: on the Unix socket that `EDGEFLEET_OIP_SOCKET` names
    to it. `served_as`: what it calls the model, if not by the manifest's name. `concurrency`: how
    many requests it takes at once. `cpus`: the processors it may use; 0: as many as the device
    gives a worker threads. `pids`: how many processes and threads it may have.
    """

    port: int = 0
    served_as: str = ""
    concurrency: int = 1
    cpus: float = 0.0
    pids: int = 256


RuntimeName = Literal["onnxruntime", "litert", "container", "registers"]


class RuntimeNeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What executes the variant: runtime name, lowest version, providers by preference, opsets.

    `image`, of a container alone, is `[HOST[:PORT]/]NAME@sha256:<hex>`: the digest is what is
    signed, and there is no tag that could come to mean something else. `cpu_fallback: false` asks a
    device to refuse the variant rather than run nodes of it on the CPU.
    `registers` is a core in an FPGA that is run by its register window.
    """

    name: RuntimeName
    min_version: str = ""
    providers: list[str] = []
    opsets: dict[str, int] = {}
    image: str = ""
    cpu_fallback: bool = True
    container: ContainerNeed = ContainerNeed()


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the variant may take: resident memory in MB, seconds to load and prove, disk in MB.

    `device_memory_mb` is what it takes of an accelerator's own memory; 0: not said.
    """

    memory_mb: int = 1024
    load_s: int = 60
    disk_mb: int = 4096
    device_memory_mb: int = 0


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Dynamic batching: requests that wait are run as one, joined along the first axis.

    `max_batch_size`: rows of one run at most; a request that brings more is run by itself.
    `max_queue_delay_microseconds`: how long the oldest request may wait for company while nothing
    else is to be run; 0: it takes along what waits already.
    """

    max_batch_size: int
    max_queue_delay_microseconds: int = 0


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
    """One build of the model for some hardware; `hardware` holds exact strings, `*` fits any.

    `fallback` is the id of another variant that answers while this one cannot.
    """

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
    fpga: Fpga | None = None
    fallback: str = ""
    processing: Processing | None = None
    batching: Batching | None = None

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
