"""`edgefleet-agent import-bundle`: hand a document and its blobs to agentd, or judge it ourselves.

The same bytes that the broker or HTTP would bring, by USB stick; no cloud is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import NamedTuple, TextIO

import msgspec

from edgefleet_agent import compose, durable
from edgefleet_agent.config import Config
from edgefleet_agent.identity import Identity
from edgefleet_agent.inbox import BLOBS, DOCUMENT, chunks, read_document
from edgefleet_agent.status import OUTCOME, Outcome, read_status
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_agent.trust.evidence import open_document
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, TrustError, UnavailableError
from edgefleet_shared.identifiers import DIGEST

PATIENCE_S = 60.0
LOOK_S = 0.1


class Imported(NamedTuple):
    """What was brought: the assignment's counter, blobs and bytes, and whether agentd runs."""

    counter: int
    blobs: int
    bytes: int
    running: bool


def import_bundle(config: Config, source: Path) -> Imported:
    """Bring a desired document, and what blobs lie beside it, from a folder or a file.

    Args:
        config: Of this device.
        source: A folder with `desired.json` and `blobs/sha256/`, or such a `desired.json`.

    Raises:
        InvalidInputError: Not enrolled, or there is no such document (code `no_bundle`), or a blob
            is not what its name says (`blob_corrupt`).
        TrustError: The device refuses the document, by the code that it would refuse it by if it
            came over the network.
        UnavailableError: agentd runs and has not judged it in a minute (code `import_pending`).
        OSError: The disk is full, or the source cannot be read.
    """
    whole = _is_folder(source)
    identity = Identity(config.state / "identity", config.identity.key)
    document = read_document(source / DOCUMENT if whole else source)
    counter = open_document(document).desired.counter
    inbox = durable.make_folder(config.state / "inbox")
    with _turn(inbox):
        name, count, size = _place(inbox, document, source / BLOBS if whole else None)
    try:
        lock = compose.lock(config.state)
    except UnavailableError:
        _by_agentd(config, name)
        return Imported(counter, count, size, running=True)
    with lock:
        try:
            Acceptance(
                config.state, identity.who, config.hardware_id, identity.root, time.time
            ).accept(document)
        except BaseException:
            shutil.rmtree(inbox / name, ignore_errors=True)
            raise
    return Imported(counter, count, size, running=False)


def _is_folder(source: Path) -> bool:
    """Tell a folder from a document.

    Raises:
        InvalidInputError: It is not there, not to be read by this user, or holds no document.
    """
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode) and DOCUMENT not in {path.name for path in source.iterdir()}:
            raise InvalidInputError(
                f"{source} holds no bundle: there is no {DOCUMENT} in it.",
                code="no_bundle",
                hint="Is the stick mounted (`findmnt`)? An export that was cut off leaves blobs "
                "without it: run `edgefleet device export-bundle DEVICE FOLDER` again.",
            )
    except PermissionError as error:
        raise InvalidInputError(
            f"{source} cannot be read: {error.strerror}.",
            code="not_readable",
            hint="Mount the stick so that this user may read it (`mount -o uid=...`), or copy the "
            "bundle to a folder that may be read.",
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"{source} cannot be read: {error.strerror or error}.",
            code="no_bundle",
            hint="Is the stick mounted (`findmnt`)? `edgefleet device export-bundle DEVICE FOLDER` "
            "writes a bundle.",
        ) from error
    return stat.S_ISDIR(mode)


def _turn(inbox: Path) -> TextIO:
    """Take the inbox for one import, and remove what one that was cut off has left."""
    file = (inbox / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    for path in inbox.glob(".incoming-*"):
        shutil.rmtree(path, ignore_errors=True)
    return file


def _place(inbox: Path, document: bytes, blobs: Path | None) -> tuple[str, int, int]:
    name = f"{time.time_ns():020}"
    incoming = inbox / f".incoming-{name}"
    durable.make_folder(incoming / BLOBS)
    durable.atomic_write(incoming / DOCUMENT, document)
    count, size = 0, 0
    for path in sorted(blobs.iterdir()) if blobs and blobs.is_dir() else []:
        if DIGEST.fullmatch(f"sha256:{path.name}"):
            size += _copy(path, incoming / BLOBS / path.name)
            count += 1
    durable.fsync_folder(incoming / BLOBS)
    incoming.rename(inbox / name)
    durable.fsync_folder(inbox)
    return name, count, size


def _copy(path: Path, to: Path) -> int:
    hasher, size = hashlib.sha256(), 0
    with to.open("wb") as file:
        for chunk in chunks(path):
            file.write(chunk)
            hasher.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    if hasher.hexdigest() != path.name:
        raise InvalidInputError(
            f"{path} does not hash to its name.",
            code="blob_corrupt",
            hint="Write the bundle anew; the medium may be failing.",
        )
    return size


def _by_agentd(config: Config, name: str) -> None:
    os.kill(read_status(config.run)["pid"], signal.SIGUSR2)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        data = durable.read_bytes(config.run / OUTCOME)
        if data is not None:
            told = strict_json.decode(data, Outcome, max_bytes=len(data), what=OUTCOME)
            if told.entry == name and not told.code:
                return
            if told.entry == name:
                raise TrustError(
                    f"The device refuses it: {told.message}",
                    code=told.code,
                    hint="What runs goes on running; nothing was changed.",
                )
        time.sleep(LOOK_S)
    raise UnavailableError(
        f"agentd has not judged it within {PATIENCE_S:.0f} s; it lies in its inbox.",
        code="import_pending",
        hint="Its log says why.",
    )


def shown(found: Imported) -> dict[str, object]:
    """Return what `--json` prints."""
    return {"accepted": True, **msgspec.to_builtins(found._asdict())}
