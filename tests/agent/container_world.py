"""Containers under test: a keeper of its own on a real dockerd, and packages that name images."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from edgefleet_agent.containers.client import KeeperClient, Settings
from edgefleet_agent.containers.lifetimes import Containers
from edgefleet_agent.ipc import control, dial
from edgefleet_shared.identifiers import sha256_digest
from edgefleet_shared.package import ContainerNeed, FileEntry, Golden, Limits, RuntimeNeed
from tests.agent.gateways import UnixConnection
from tests.agent.running import WholeAgent
from tests.agent.world import World
from tests.dockerd import Dockerd
from tests.models import Package, golden_bytes, linear, package

GOLDEN_IN = np.array([[1, 2, 3, 4]], np.float32)


def inside(device: Device, one: Package) -> str:
    """Return what the server in a container says of itself."""
    connection = UnixConnection(device.home(one) / "socket" / "oip.sock")
    connection.request("GET", "/facts")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


class Device:
    """What agentd has of containers, without agentd."""

    def __init__(self, dockerd: Dockerd, name: str, *, registries=None, folder: Path | None = None):
        self.dockerd, self.name = dockerd, name
        self.folder = folder or Path(tempfile.mkdtemp(prefix="efc", dir="/tmp"))
        self.ended: list = []
        settings = Settings(f"unix://{dockerd.socket}", "demo", name, registries or {})
        self.keeper = KeeperClient(settings)
        self.keeper.on_ended = self.ended.append
        self.containers = Containers(
            self.keeper, self.folder / "run", self.folder / "containers.json"
        )

    def package(
        self,
        image: str,
        *,
        scale: float = 2.0,
        limits: Limits | None = None,
        labels: bytes = b"no\nyes\n",
        **need,
    ) -> Package:
        """Return a package of linear's signature whose answers come from an image."""
        golden = golden_bytes([({"x": GOLDEN_IN}, {"y": np.full((1, 2), 10 * scale, np.float32)})])
        one = package(self.folder, linear(scale), golden=golden, cases=1, limits=limits)
        path = self.folder / "labels"
        path.write_bytes(labels)
        golden_file, golden_path = one.spec.files[1], one.paths[1]
        entry = msgspec.structs.replace(
            golden_file, path="labels.txt", role="labels", digest=sha256_digest(labels),
            size=len(labels),
        )  # fmt: skip
        spec = msgspec.structs.replace(
            one.spec,
            version="2.0.0",
            digest=sha256_digest(f"{image} {need} {limits}".encode()),
            runtime="container",
            files=[golden_file, entry],
            container=RuntimeNeed("container", image=image, container=ContainerNeed(**need)),
            limits=limits or Limits(memory_mb=64, load_s=15),
        )
        return Package(spec, [golden_path, path])

    @contextmanager
    def opened(self, one: Package):
        """Bring the container up; give the descriptors that travel with the specification."""
        with self.containers.running(one.spec, one.paths) as folder:
            yield [*one.open(), os.dup(folder)]

    def load(self, gateway, one: Package) -> control.Outcome:
        """Prove and load, as agentd does."""
        with self.opened(one) as files:
            outcome = gateway.control.ask(control.Prove, one.spec, files=files)
            assert outcome.ok, outcome  # in here, as agentd raises
            again = [*one.open(), os.open(self.home(one), os.O_RDONLY)]
            outcome = gateway.control.ask(control.Load, one.spec, files=again)
            assert outcome.ok, outcome
            self.containers.hold(one.spec.digest)
            return outcome

    def home(self, one: Package) -> Path:
        """Return the folder that its container is reached by."""
        return self.folder / "run" / dial.folder_name(one.spec.digest)

    def serve(self, gateway, one: Package) -> None:
        """Load and flip; both must succeed."""
        self.load(gateway, one)
        assert isinstance(
            gateway.control.ask(control.Flip, one.spec.model, one.spec.digest), control.Flipped
        )

    def container(self, one: Package):
        """Return docker's view of the container of a package, None if there is none."""
        with contextlib.closing(self.dockerd.client()) as client:
            labels = [f"io.edgefleet.digest={one.spec.digest}", f"io.edgefleet.device={self.name}"]
            found = client.containers.list(all=True, filters={"label": labels})
            return found[0].attrs if found else None

    def close(self) -> None:
        """Remove this device's containers and its folder."""
        self.containers.sweep([])
        self.containers.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class RealAgent(WholeAgent):
    """A whole agent on a dockerd."""

    def __init__(self, world: World, dockerd: Dockerd, **options) -> None:
        super().__init__(world, containers={"socket": str(dockerd.socket)}, **options)
        self.dockerd = dockerd

    def containers(self) -> list:
        """Return docker's view of this device's containers."""
        with self.dockerd.closing() as client:
            label = "io.edgefleet.device=cam-1"
            return [c.attrs for c in client.containers.list(all=True, filters={"label": label})]

    def images(self) -> list[str]:
        """Return the registry digests that dockerd holds."""
        with self.dockerd.closing() as client:
            return [d for i in client.images.list() for d in i.attrs["RepoDigests"]]

    def close(self) -> None:
        """End agentd and its gateway, and remove what docker has of it."""
        with self.dockerd.closing() as client:
            for one in self.containers():
                client.api.remove_container(one["Id"], force=True)
        super().close()


def boxed(world: World, version: str, image: str, scale: float = 2.0, **need):
    """Publish a container variant of linear's signature, with golden vectors."""
    golden = golden_bytes([({"x": GOLDEN_IN}, {"y": np.full((1, 2), 10 * scale, np.float32)})])
    digest = sha256_digest(golden)
    world.blobs[digest] = golden

    def change(manifest):
        variant = msgspec.structs.replace(
            manifest.variants[0],
            id="container",
            runtime=RuntimeNeed("container", image=image, container=ContainerNeed(**need)),
            files=[FileEntry("golden.safetensors", digest, len(golden), "golden")],
            golden=Golden("golden.safetensors", 1),
            limits=Limits(memory_mb=64, load_s=15),
        )
        return msgspec.structs.replace(manifest, variants=[variant])

    return world.publish(version, change=change)
