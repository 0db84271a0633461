"""What agentd tells the gateway, and the gateway a worker, of a model."""

from __future__ import annotations

import msgspec

from edgefleet_shared.fpga import Fpga
from edgefleet_shared.manifest import (
    Batching,
    FileEntry,
    Golden,
    Limits,
    RuntimeNeed,
    TensorSpec,
)
from edgefleet_shared.processing import Processing


class PreparedFile(msgspec.Struct, frozen=True):
    """One file of a prepared form: digest and size in bytes."""

    digest: str
    size: int


class PreparedForm(msgspec.Struct, frozen=True):
    """What this device has made of a package for itself; its descriptors follow the package's.

    `maker` is the runtime with its version, as `Runtime.name` and `version()` say: another one does
    not open it. It is an aid and never trusted: where it cannot be used, the package itself is.
    """

    maker: str
    files: list[PreparedFile]


class ModelSpec(msgspec.Struct, frozen=True):
    """All that gateway and worker need to know of one package variant; no URL, no key.

    `placement` is what agentd chose to run it on: execution providers or delegates of this device
    by preference, with options from its own configuration. No package has a say in it, and it
    alone may hold a path. `cpu_fallback`: nodes that the accelerator cannot run may run on the CPU.

    `container` is there for a container variant alone: its descriptors are followed by one of the
    folder by which the container is reached, see `ipc.dial`.
    """

    model: str
    version: str
    digest: str
    runtime: str
    accelerator: str
    providers: list[str]
    files: list[FileEntry]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    limits: Limits
    golden: Golden | None = None
    session_options: dict[str, int | str | bool] = {}
    threads: int = 1
    cpu_fallback: bool = True
    variant: str = ""
    placement: dict[str, dict[str, str]] = {}
    fpga: Fpga | None = None
    processing: Processing | None = None
    container: RuntimeNeed | None = None
    prepared: PreparedForm | None = None
    batching: Batching | None = None

    @property
    def descriptors(self) -> int:
        """How many descriptors travel with it.

        One a file; what the model is reached by, a core's register window or a container's folder;
        last, those of the prepared form.
        """
        by_hand = self.container is not None or bool(self.fpga and self.fpga.registers)
        return len(self.files) + by_hand + self.prepared_files

    @property
    def prepared_files(self) -> int:
        """How many of the descriptors, the last ones, are the prepared form's."""
        return len(self.prepared.files) if self.prepared else 0
