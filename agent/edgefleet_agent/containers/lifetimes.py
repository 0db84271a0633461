"""The containers of this device: brought up for a slot, held while it needs them, then removed."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.containers import messages
from edgefleet_agent.containers.client import KeeperClient
from edgefleet_agent.containers.messages import Mount, Wanted
from edgefleet_agent.ipc import dial
from edgefleet_agent.ipc.control import Event, ModelSpec
from edgefleet_shared import strict_json
from edgefleet_shared.errors import EdgeFleetError, IncompatibleError

NOBODY: Final = "65532:65532"
"""Who runs in a container where the agent is root: an id that no distribution gives away."""
LEDGER_MAX_BYTES: Final = 1024 * 1024


class Ledger(msgspec.Struct, frozen=True):
    """What this device has had pulled and may remove again; other images are somebody else's."""

    pulled: list[str] = []


class Containers:
    """What agentd does with containers; where docker cannot be used, each call says so.

    Args:
        keeper: Asks dockerd; None where there can be none.
        run: `<run_dir>/containers`, for the folders that containers are reached by.
        ledger: `<state_dir>/containers.json`; it is there once an image was pulled.
        user: `UID:GID` in the containers; '' = nobody, or the agent's own where that is not root.
        threads: Processors of a container whose package does not say.
        why_not: Why there is no keeper.
    """

    def __init__(
        self,
        keeper: KeeperClient | None,
        run: Path,
        ledger: Path,
        user: str = "",
        threads: int = 1,
        why_not: str = "",
    ) -> None:
        self._keeper, self._run, self._path = keeper, run, ledger
        self._user = user or (NOBODY if not os.geteuid() else f"{os.geteuid()}:{os.getegid()}")
        self._threads, self._why_not = threads, why_not
        self._lock = threading.Lock()

    def tell(self, on_event: Callable[[Event], None]) -> None:
        """Have `on_event` called, from another thread, when a container has ended by itself."""
        if self._keeper is not None:
            self._keeper.on_ended = lambda e: on_event(Event(e.code, e.model, e.digest, e.message))

    def can_run(self, image: str) -> bool:
        """Return whether docker answers here, so that an image may be tried; '' needs none."""
        if not image:
            return True
        try:
            self._need().call(lambda number: messages.Look(number, image))
        except IncompatibleError:
            return False
        except EdgeFleetError:
            return True  # what is wrong with the image is said when it is brought
        return True

    def bring(
        self, image: str, stop: threading.Event, progress: Callable[[int, int], None]
    ) -> bool:
        """Have an image here; return False if `stop` came first.

        Raises:
            IncompatibleError: docker cannot be used here (`unsupported_runtime`).
            UnavailableError: It cannot be pulled now; what came is kept.
            TrustError: dockerd holds another image than the signed one.
        """
        keeper = self._need()
        if keeper.call(lambda number: messages.Look(number, image)).images:
            if not self.known():
                self._note(set())
            return True
        # Before the pull: after a power cut in the midst of it we know whose image it is.
        self._note({*self._pulled(), image})
        return keeper.pull(image, stop, progress) is not None

    @contextmanager
    def running(self, spec: ModelSpec, blobs: Sequence[Path]) -> Iterator[int]:
        """Have the container of a package running; give the descriptor of its folder.

        If what is done with it fails, the container is removed; else `hold` or `sweep` decides.

        Args:
            spec: The package.
            blobs: Where its files lie, in the order of `spec.files`.

        Raises:
            IncompatibleError: docker cannot be used here.
            UnavailableError: The image is not here and cannot be pulled, or dockerd refuses.
        """
        keeper = self._need()
        assert spec.container is not None
        self.bring(spec.container.image, threading.Event(), lambda *_: None)
        wanted = self._wanted(spec, blobs)
        keeper.call(lambda number: messages.Start(number, wanted))
        folder = os.open(wanted.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield folder
        except BaseException:
            with suppress(EdgeFleetError):  # `sweep` finds it again
                keeper.call(lambda number: messages.Remove(number, spec.digest))
            raise
        finally:
            os.close(folder)

    def hold(self, digest: str) -> None:
        """Let dockerd start the container again whenever it ends, also while agentd is away."""
        self._need().call(lambda number: messages.Hold(number, digest))

    def sweep(self, keep: Iterable[str], model: str = "") -> None:
        """Remove the containers that no slot needs, of one model or of all.

        Args:
            keep: Digests that are loaded or about to be.
            model: Only this model's; '' = of every model.
        """
        if self._keeper is None or not self.known():
            return
        kept = sorted(set(keep))
        self._keeper.call(lambda number: messages.Sweep(number, kept, model))
        if not model:
            names = {dial.folder_name(digest) for digest in kept}
            for folder in self._run.iterdir() if self._run.is_dir() else ():
                if folder.name not in names:
                    shutil.rmtree(folder, ignore_errors=True)

    def drop_images(self, needed: Iterable[str]) -> None:
        """Remove the images that we pulled and no slot needs."""
        if self._keeper is None or not (idle := sorted(self._pulled() - set(needed))):
            return
        gone = self._keeper.call(lambda number: messages.Drop(number, idle)).images
        self._note(self._pulled() - set(gone))

    def known(self) -> bool:
        """Return whether this device has ever had a container."""
        return self._path.exists()

    def close(self) -> None:
        """End the keeper; what runs goes on."""
        if self._keeper is not None:
            self._keeper.close()

    # ------------------------------------------------------------------- parts

    def _need(self) -> KeeperClient:
        if self._keeper is None:
            raise IncompatibleError(
                f"Containers cannot run here: {self._why_not}.",
                code="unsupported_runtime",
                hint="Install edgefleet-agent[docker] and docker, and see [containers] socket.",
            )
        return self._keeper

    def _wanted(self, spec: ModelSpec, blobs: Sequence[Path]) -> Wanted:
        assert spec.container is not None
        folder = durable.make_folder(self._run / dial.folder_name(spec.digest))
        inside = folder / dial.SOCKET_FOLDER
        inside.mkdir(mode=0o700, exist_ok=True)
        if not os.geteuid():
            owner, _, group = self._user.partition(":")
            os.chown(inside, int(owner), int(group))
        mounts = [
            Mount(str(path), entry.path) for path, entry in zip(blobs, spec.files, strict=True)
        ]
        return Wanted(
            digest=spec.digest,
            model=spec.model,
            version=spec.version,
            need=spec.container,
            memory_mb=spec.limits.memory_mb,
            cpus=spec.container.container.cpus or float(self._threads),
            user=self._user,
            folder=str(folder),
            inode=inside.stat().st_ino,
            mounts=mounts,
        )

    def _pulled(self) -> set[str]:
        data = durable.read_bytes(self._path)
        if data is None:
            return set()
        found = strict_json.decode(
            data, Ledger, max_bytes=LEDGER_MAX_BYTES, what="ledger of images"
        )
        return set(found.pulled)

    def _note(self, pulled: set[str]) -> None:
        with self._lock:
            durable.atomic_write(self._path, strict_json.encode(Ledger(sorted(pulled))))
