"""What the core of the agent asks of the world; `compose.py` alone chooses who answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    import numpy as np

    from edgefleet_agent.ipc.control import ModelSpec

Clock = Callable[[], float]
"""Seconds since the Unix epoch."""


class TransportEvents(Protocol):
    """What a transport calls back, from a thread of its own; each call must return at once."""

    def on_connected(self) -> None:
        """Tell that the connection stands and downwards topics are subscribed."""

    def on_disconnected(self, reason: str) -> None:
        """Tell that the connection is gone; the transport goes on trying by itself."""

    def on_refused(self, reason: str) -> None:
        """Tell that trust in the transport failed: our certificate is not taken, or theirs unknown.

        Told at every try, before `on_disconnected`. The remedy is another certificate, or another
        list of authorities, and then `renewed`.
        """

    def on_desired(self, payload: bytes) -> None:
        """Hand over a desired document, not yet verified."""

    def on_renew(self, payload: bytes) -> None:
        """Hand over a word that asks to renew the key."""


class Transport(Protocol):
    """The way to the fleet manager: MQTT now, IoT Hub beside it. Delivery is at least once.

    `publish_*` return at once; `done` is called with True once the other side holds the message,
    with False if the connection broke before that: the caller publishes again.
    """

    def start(self, events: TransportEvents) -> None:
        """Connect, and stay connected until `stop`, with jittered back-off."""

    def request_desired(self, have: int) -> None:
        """Ask for the desired document; `have` is the newest accepted counter."""

    def publish_reported(self, sealed: bytes, done: Callable[[bool], None]) -> None:
        """Publish the sealed reported document."""

    def publish_batch(self, stream: str, sealed: bytes, done: Callable[[bool], None]) -> None:
        """Publish a sealed batch of one stream."""

    def renewed(self) -> None:
        """Connect anew: key, certificate or authorities have changed on disk. Returns at once."""

    def stop(self) -> None:
        """Say goodbye (presence) and disconnect."""


class DeviceReport(msgspec.Struct, frozen=True):
    """What probing an accelerator found; `why_not` says in a sentence why it is not usable.

    `memory_mb` is the device's own memory, on the CPU the machine's; `providers` are the execution
    providers and delegates that a model has run on.
    """

    name: str
    kind: str
    usable: bool
    why_not: str = ""
    driver: str = ""
    memory_mb: int = 0
    providers: tuple[str, ...] = ()
    detail: Mapping[str, Any] = {}


class Session(Protocol):
    """A model, loaded. Lives in a worker process alone.

    A session whose `run` may be called by several threads at once says so by an attribute
    `concurrent = True`; without it there is one call at a time.

    It may carry `device_share`: percent of the model's nodes that run on what the variant names as
    its accelerator; -1, or no such attribute, where the runtime does not tell.
    """

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return every output by name.

        Raises:
            ValueError: An input does not fit the model.
            RuntimeError: The runtime failed.
        """


class Runtime(Protocol):
    """Something that executes models of one format, for example onnxruntime."""

    name: str

    def version(self) -> str:
        """Return the runtime's version."""

    def open(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
    ) -> Session:
        """Load a model from descriptors of verified blobs, in the order of `spec.files`.

        Args:
            spec: What to load.
            files: Open descriptors, positioned anywhere; the callee does not close them. A
                container's are followed by the socket that it is reached by, see `ipc.dial`.
            provider_options: Execution provider name to its options, in order of preference.

        Raises:
            RuntimeError: The model cannot be loaded.
        """


@runtime_checkable
class Preparing(Protocol):
    """What a runtime has that can bring a model into a form which this machine loads faster."""

    def prepare(
        self,
        spec: ModelSpec,
        files: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
        targets: Sequence[int],
    ) -> None:
        """Write the form into `control.PREPARED_FILES` empty, writable descriptors.

        Raises:
            RuntimeError: It cannot be made of this model.
        """

    def open_prepared(
        self,
        spec: ModelSpec,
        prepared: Sequence[int],
        provider_options: Mapping[str, Mapping[str, str]],
    ) -> Session:
        """Load what `prepare` wrote for the same `spec`, on this machine, by the same version.

        Raises:
            RuntimeError: It cannot be loaded; the package itself can be, perhaps.
        """


class Accelerator(Protocol):
    """One physical device or region that models run on."""

    kind: str

    def probe(self) -> DeviceReport:
        """Look whether it is there and usable; never raises."""

    def compatible(self, spec: ModelSpec) -> str:
        """Return '' if `spec` can run here, else a sentence that says why not."""

    def providers(self, spec: ModelSpec) -> Mapping[str, Mapping[str, str]]:
        """Return the execution providers to open `spec` with, and their options."""

    def prepare(self, spec: ModelSpec, files: Sequence[int], targets: Sequence[int]) -> bool:
        """Make of `spec` what this hardware needs, at idle priority, in a throw-away process.

        Args:
            spec: What shall run here.
            files: Its descriptors.
            targets: `control.PREPARED_FILES` empty descriptors to write it into. They come back,
                to read, after `files` when the slot is programmed.

        Returns:
            Whether there was something to make; if not, the runtime may prepare the model itself.

        Raises:
            RuntimeError: It cannot be made of this model.
        """

    def reserve(self, spec: ModelSpec) -> str:
        """Return a slot for `spec`.

        Raises:
            UnavailableError: Nothing is free; the message says what would have to go.
        """

    def program(self, slot: str, spec: ModelSpec, files: Sequence[int]) -> None:
        """Bring the slot's hardware to the state that `spec` needs; nothing to do on a CPU."""

    def release(self, slot: str) -> None:
        """Give the slot back."""

    def state(self, slot: str) -> str:
        """Return `free`, `reserved`, `programming`, `operating` or `error`."""


class Offload(Accelerator, Protocol):
    """An accelerator beside the CPU that a model is opened on by execution providers: GPU, NPU."""

    def free_mb(self) -> int:
        """Return what is free of its own memory, in MB; -1 if it has none, or nobody tells."""


class Fabric(Accelerator, Protocol):
    """An accelerator that agentd programs before a worker starts, because workers may not: an FPGA.

    Slots may be full: then `reserve` raises `NeedsDrainError`, which says who holds them.
    """

    def ready(self, spec: ModelSpec) -> bool:
        """Return whether a slot is programmed with `spec` just now."""

    def open(self, slot: str, spec: ModelSpec) -> list[int]:
        """Return what a worker gets of a programmed slot: descriptors, the caller's to close.

        Raises:
            UnavailableError: It has not appeared.
        """

    def held(self, spec: ModelSpec) -> AbstractContextManager[None]:
        """Keep the slot of `spec` from being taken by `retain` until its worker runs."""

    def retain(self, digests: set[str]) -> list[str]:
        """Release every slot whose package is neither among `digests` nor held; return whose."""
