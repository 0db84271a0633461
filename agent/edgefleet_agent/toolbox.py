"""What a slot needs to do its work; built once by `compose.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from edgefleet_agent.choosing import ChoiceBook
from edgefleet_agent.containers.lifetimes import Containers
from edgefleet_agent.fetch import Fetcher
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.inbox import Inbox
from edgefleet_agent.ipc.control import MAX_FDS, ModelSpec
from edgefleet_agent.journal import Journal, VersionRef
from edgefleet_agent.measured import Measured
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.ports import Fabric, Offload
from edgefleet_agent.preparation import Prepared
from edgefleet_agent.store import Store
from edgefleet_agent.telemetry import Telemetry
from edgefleet_agent.together import Together
from edgefleet_agent.variants import Machine
from edgefleet_shared.errors import IncompatibleError
from edgefleet_shared.install import why_not_serve
from edgefleet_shared.package import Manifest, Variant, decode_manifest


class Toolbox(NamedTuple):
    """The parts that slots share.

    Attributes:
        journal: Where every slot stands.
        store: Blobs on disk.
        prepared: What the device has made of packages, to load them fast.
        measured: What loading them has taken here.
        inbox: Blobs that came by hand.
        fetcher: Brings blobs into the store.
        outbox: Takes receipts.
        telemetry: Closes windows at a swap.
        gateway: Gives the connection as it stands, or raises `GatewayLostError`.
        security_floor: Model to lowest release counter that may be activated.
        containers: Runs container variants.
        together: Lets no slot swap before the others of its assignment have their blobs.
        stamp: Gives the device's time as RFC 3339 text.
        hardware: What packages must name to run here.
        machine: What models can run on here.
        choices: Which variants were chosen, and by what numbers.
        offloads: Accelerators that say by what providers a model is opened, by kind.
        threads: Intra-op threads a worker.
        software: Agent and runtimes that are here, with their versions.
        reserve_kb: Memory that a swap leaves available.
        fpga: What agentd programs before a worker starts.
        available_kb: Tells how much memory is available now.
    """

    journal: Journal
    store: Store
    prepared: Prepared
    measured: Measured
    inbox: Inbox
    fetcher: Fetcher
    outbox: Outbox
    telemetry: Telemetry
    gateway: Callable[[], GatewayClient]
    security_floor: Callable[[str], int]
    together: Together
    containers: Containers
    stamp: Callable[[], str]
    hardware: str
    machine: Machine
    choices: ChoiceBook
    offloads: Mapping[str, Offload]
    threads: int
    software: str
    reserve_kb: int
    available_kb: Callable[[], int]
    fpga: Fabric | None = None

    def why_not_serve(self, model: str, release_counter: int) -> str:
        """Return '' if a version may serve by today's floors, else the code why not."""
        return why_not_serve(release_counter, self.security_floor(model))

    def manifest(self, digest: str, size: int) -> Manifest:
        """Return a stored manifest, hashed again.

        Raises:
            UnavailableError: Not stored.
            TrustError: Changed on disk.
            InvalidInputError: Signed, and yet no manifest.
        """
        return decode_manifest(self.store.read(digest, size))

    def spec(self, version: VersionRef) -> ModelSpec:
        """Return what the gateway must know of a stored version; raises as `manifest`."""
        manifest = self.manifest(version.digest, version.size)
        variant = next(v for v in manifest.variants if v.id == version.variant)
        spec = model_spec(manifest, variant, version.digest, self.threads)
        offload = self.offloads.get(spec.accelerator)
        if offload is None:
            return spec
        try:
            found = offload.providers(spec)
        except IncompatibleError:
            return spec  # the worker says it, and the next best variant is taken
        placement = {name: dict(value) for name, value in found.items()}
        return msgspec.structs.replace(spec, placement=placement)

    @contextmanager
    def hashed(self, spec: ModelSpec) -> Iterator[list[int]]:
        """Give descriptors of the spec's files, hashed through themselves, and close them.

        Raises:
            UnavailableError: A blob is missing.
            TrustError: A blob has changed on disk; it has been removed.
            IncompatibleError: More files than one message can carry.
        """
        if spec.descriptors > MAX_FDS:
            raise IncompatibleError(
                f"The variant has {len(spec.files)} files; {MAX_FDS} can be handed on.",
                code="too_many_files",
            )
        fds: list[int] = []
        try:
            for entry in spec.files:
                fd = self.store.open_verified(entry.digest, entry.size)
                fds.append(fd)  # one by one: what is open is closed if the next one fails
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    @contextmanager
    def verified(self, spec: ModelSpec) -> Iterator[list[int]]:
        """Give what a worker is given: `hashed`, then the folder of a container, which runs.

        Raises:
            IncompatibleError: As `hashed`; or there is no docker for a container.
            UnavailableError: As `hashed`; or dockerd cannot run it now.
            TrustError: As `hashed`; or dockerd holds another image than the signed one.
        """
        with self.hashed(spec) as fds:
            if spec.container is None:
                yield fds
                return
            paths = [self.store.path(entry.digest) for entry in spec.files]
            with self.containers.running(spec, paths) as folder:
                yield [*fds, folder]

    def hold(self, spec: ModelSpec) -> None:
        """A version is loaded: let dockerd start its container again whenever it ends."""
        if spec.container is not None:
            self.containers.hold(spec.digest)


def model_spec(manifest: Manifest, variant: Variant, digest: str, threads: int) -> ModelSpec:
    """Return the part of a manifest that the gateway and its workers need."""
    return ModelSpec(
        model=manifest.name,
        version=manifest.version,
        digest=digest,
        runtime=variant.runtime.name,
        accelerator=variant.accelerator,
        providers=variant.runtime.providers,
        files=variant.files,
        inputs=variant.inputs,
        outputs=variant.outputs,
        limits=variant.limits,
        golden=variant.golden,
        session_options=variant.session_options,
        threads=threads,
        cpu_fallback=variant.runtime.cpu_fallback,
        fpga=variant.fpga,
        processing=variant.processing,
        batching=variant.batching,
        variant=variant.id,
        container=variant.runtime if variant.runtime.image else None,
    )
