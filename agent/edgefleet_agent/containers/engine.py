"""dockerd, by the docker SDK: the only module that imports it, in the keeper's process alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import docker
import docker.errors
from docker.types import Mount
from requests.exceptions import RequestException

from edgefleet_agent.containers import settings
from edgefleet_agent.containers.messages import Wanted
from edgefleet_shared.errors import EdgeFleetError, IncompatibleError, TrustError, UnavailableError

TIMEOUT_S: Final = 60
_Failures = (docker.errors.DockerException, RequestException, OSError)


@contextlib.contextmanager
def translated(code: str = "container_failed") -> Iterator[None]:
    """Turn what the SDK raises into errors of ours.

    Raises:
        IncompatibleError: dockerd does not answer (`unsupported_runtime`).
        UnavailableError: It answers and will not; `code` names it.
    """
    try:
        yield
    except docker.errors.APIError as error:
        text = str(error.explanation or error).strip()[:400]
        raise UnavailableError(f"dockerd refuses: {text}", code=code) from error
    except _Failures as error:
        raise IncompatibleError(
            f"dockerd does not answer: {str(error)[:300]}",
            code="unsupported_runtime",
            hint="Start docker, and let the agent's user write to the socket that "
            "[containers] socket names.",
        ) from error


class Engine:
    """The containers of one device.

    Args:
        url: Where dockerd listens, for example unix:///var/run/docker.sock.
        fleet: The fleet.
        device: The device; other devices' containers on this dockerd are never touched.
        registries: Registry host to user name and password.
    """

    def __init__(
        self, url: str, fleet: str, device: str, registries: Mapping[str, tuple[str, str]]
    ) -> None:
        self._fleet, self._device, self._registries = fleet, device, registries
        self.removing: set[str] = set()  # whose end is no news
        with translated():
            self._api = docker.APIClient(base_url=url, timeout=TIMEOUT_S, version="auto")
            self._api.ping()
        self._filter = [f"{k}={v}" for k, v in settings.owner(fleet, device).items()]

    # ------------------------------------------------------------------- images

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return what dockerd knows of an image by its signed digest; None if it is not here.

        The digest is that of the image's manifest in a registry, or the image's own id, which an
        image brought by hand keeps.

        Raises:
            TrustError: dockerd gives another image for it (`image_differs`).
        """
        digest = reference.rpartition("@")[2]
        for asked in (reference, digest):
            with translated():
                try:
                    found: dict[str, Any] = self._api.inspect_image(asked)
                except docker.errors.NotFound:
                    continue
            held = {name.rpartition("@")[2] for name in found.get("RepoDigests") or ()}
            if digest in held | {found["Id"]}:
                return found
            raise TrustError(
                f"dockerd holds another image under {reference}.", code="image_differs"
            )
        return None

    def pull(
        self, reference: str, progress: Callable[[int, int], None], cancelled: threading.Event
    ) -> bool:
        """Pull an image by its digest, unless it is here; return whether it came.

        Raises:
            UnavailableError: Not now (`image_pull_failed`); layers that have come are kept.
            TrustError: What came has another digest.
        """
        if self.image(reference) is not None:
            return False
        name, _, digest = reference.partition("@")
        host = name.partition("/")[0]
        user, password = self._registries.get(host, ("", ""))
        login = {"username": user, "password": password} if user else None
        sizes: dict[str, tuple[int, int]] = {}
        with translated("image_pull_failed"):
            lines = self._api.pull(name, tag=digest, stream=True, decode=True, auth_config=login)
            for line in lines:
                if text := line.get("error"):
                    raise UnavailableError(
                        f"{reference} cannot be pulled: {text}", code="image_pull_failed"
                    )
                if cancelled.is_set():
                    lines.close()
                    raise UnavailableError("The pull was given up.", code="cancelled")
                if count_layer(sizes, line):
                    progress(*map(sum, zip(*sizes.values(), strict=True)))
        if self.image(reference) is None:
            raise TrustError(f"What came is not {reference}.", code="image_differs")
        return True

    def drop(self, reference: str) -> bool:
        """Remove an image; return whether it is gone."""
        found = self.image(reference)
        if found is None:
            return True
        try:
            with translated():
                self._api.remove_image(reference if found.get("RepoDigests") else found["Id"])
        except UnavailableError:
            return False  # in use, by somebody else's container perhaps
        return True

    # ------------------------------------------------------------------- containers

    def containers(self) -> list[dict[str, Any]]:
        """Return this device's containers, also those that have ended, as docker lists them."""
        with translated():
            found: list[dict[str, Any]] = self._api.containers(
                all=True, filters={"label": self._filter}
            )
        return found

    def start(self, wanted: Wanted) -> str:
        """Have the container running, once; return its id.

        Raises:
            UnavailableError: No such image (`image_missing`), or dockerd will not.
        """
        image = self.image(wanted.need.image)
        if image is None:
            raise UnavailableError(f"{wanted.need.image} is not here.", code="image_missing")
        mark = settings.fingerprint(wanted, image["Id"])
        kept = ""
        for one in self._of(wanted.digest):
            same = one["Labels"].get(f"{settings.LABEL}settings") == mark
            if same and one["State"] == "running" and not kept:
                kept = str(one["Id"])
            else:
                self._remove(one)
        return kept or self._create(wanted, image)

    def _create(self, wanted: Wanted, image: Mapping[str, Any]) -> str:
        mounts = [
            Mount(target, source, type="bind", read_only=read_only)
            for source, target, read_only in settings.binds(wanted)
        ]
        network = self._network(wanted) if wanted.need.container.port else "none"
        with translated():
            host = self._api.create_host_config(
                **settings.creation(wanted, image), mounts=mounts, network_mode=network
            )
            made = self._api.create_container(
                image["Id"],
                name=settings.name(self._device, wanted.digest),
                user=wanted.user,
                hostname="model",
                labels=settings.labels(self._fleet, self._device, wanted, image["Id"]),
                environment=settings.environment(wanted),
                healthcheck={"test": ["NONE"]},  # we ask it ourselves
                host_config=host,
            )
            self._api.start(made["Id"])
        return str(made["Id"])

    def _network(self, wanted: Wanted) -> str:
        """Return a network that reaches this machine alone, with nobody else on it."""
        name = settings.name(self._device, wanted.digest)
        with translated():
            if not self._api.networks(names=[name]):
                self._api.create_network(
                    name,
                    driver="bridge",
                    internal=True,
                    labels=settings.owner(self._fleet, self._device),
                )
        return name

    def address(self, identity: str) -> str:
        """Return the address of a container on its network, '' if it has none."""
        with translated():
            networks = self._api.inspect_container(identity)["NetworkSettings"]["Networks"]
        return next((str(n["IPAddress"]) for n in networks.values() if n["IPAddress"]), "")

    def hold(self, digest: str) -> None:
        """Let dockerd start the container again whenever it ends, until it is removed."""
        for one in self._of(digest):
            with translated():
                self._api.update_container(one["Id"], restart_policy={"Name": "always"})

    def held(self, digest: str) -> bool:
        """Return whether dockerd starts the container again by itself."""
        for one in self._of(digest):
            with translated(), contextlib.suppress(docker.errors.NotFound):
                policy = self._api.inspect_container(one["Id"])["HostConfig"]["RestartPolicy"]
                if policy["Name"] == "always":
                    return True
        return False

    def remove(self, digest: str) -> None:
        """Remove the containers of a digest."""
        for one in self._of(digest):
            self._remove(one)

    def sweep(self, keep: set[str], model: str) -> list[dict[str, Any]]:
        """Remove containers but those of the digests to keep; return the removed."""
        gone = []
        for one in self.containers():
            told = one["Labels"]
            if model and told.get(f"{settings.LABEL}model") != model:
                continue
            if told.get(f"{settings.LABEL}digest") not in keep:
                self._remove(one)
                gone.append(one)
        return gone

    def _of(self, digest: str) -> list[dict[str, Any]]:
        label = f"{settings.LABEL}digest"
        return [one for one in self.containers() if one["Labels"].get(label) == digest]

    def _remove(self, one: Mapping[str, Any]) -> None:
        self.removing.add(str(one["Id"]))
        with translated(), contextlib.suppress(docker.errors.NotFound):
            # Killed: its worker has let the last request end, and it has nothing to write to.
            self._api.remove_container(one["Id"], v=True, force=True)
        name = settings.name(self._device, one["Labels"].get(f"{settings.LABEL}digest", ""))
        with contextlib.suppress(EdgeFleetError), translated():
            if self._api.networks(names=[name]):
                self._api.remove_network(name)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what happens to this device's containers; ends when dockerd does."""
        asked = {"label": self._filter, "type": "container", "event": ["die", "oom", "start"]}
        with translated():
            yield from self._api.events(decode=True, filters=asked)


def count_layer(sizes: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> bool:
    """Note how far a layer is from a line of docker's progress; return whether that is news."""
    layer, detail = line.get("id"), line.get("progressDetail") or {}
    status = line.get("status")
    if not layer:
        return False
    if status == "Downloading" and detail.get("total"):
        sizes[layer] = (int(detail.get("current", 0)), int(detail["total"]))
    elif status in {"Download complete", "Pull complete"} and layer in sizes:
        sizes[layer] = (sizes[layer][1], sizes[layer][1])
    else:
        return False
    return True
