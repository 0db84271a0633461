"""Where every slot stands: one JSON document, replaced whole before each action."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.quarantine import Failures
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.messages import SlotAssignment, SwapReceipt, TrialResult
from edgefleet_shared.states import DONE, DeploymentState

MAX_BYTES = 4 * 1024 * 1024
KEPT_QUARANTINES = 32


class VersionRef(msgspec.Struct, frozen=True):
    """One version that the device can load: enough to find it on disk without the cloud.

    `variant` is the one that was chosen; `blobs` maps digest to size of its files, and of those of
    `alternates`: the variants that proved good too, the best first, for when it can no longer run.
    `images` maps each that is a container to its image.
    """

    model: str
    version: str
    digest: str
    size: int
    release_counter: int
    variant: str
    blobs: dict[str, int] = {}
    alternates: list[str] = []
    images: dict[str, str] = {}

    @property
    def image(self) -> str:
        """The chosen variant's image, '' if it is no container."""
        return self.images.get(self.variant, "")

    def needs(self) -> set[str]:
        """Return every digest that must stay in the store for this version."""
        return {self.digest, *self.blobs}


class Deployment(msgspec.Struct, frozen=True):
    """One deployment of one slot; fields as `messages.SlotReport` names them.

    `staged` is known once it is known what could run here, and names the chosen variant as soon as
    there is one; `choice` says why that. `blobs` is the base URL of the blobs. `drain`: the old
    version ends before the new one is loaded; `stand_in`: and a fallback answers meanwhile.
    `shadow` and `canary` are what those windows showed, once they have passed.
    """

    id: str
    target: SlotAssignment
    blobs: str
    state: DeploymentState
    attempt: int = 1
    seq: int = 1
    since: str = ""
    reason: str = ""
    detail: str = ""
    verdict: str = ""
    staged: VersionRef | None = None
    choice: str = ""
    drain: bool = False
    stand_in: bool = False
    shadow: TrialResult | None = None
    canary: TrialResult | None = None


class SlotRecord(msgspec.Struct, frozen=True):
    """One slot. `quarantined` holds ids of deployments that were rolled back, newest last.

    `failures` holds digests that could not be proved, see `quarantine`. `given_up` is the digest of
    the active version once it has crashed too often and there was none to go back to: it does not
    run again, whatever is restarted, until an assignment has it proved anew.
    `receipt` is a swap receipt that the outbox does not hold yet. `condemned` is the digest of the
    active version where it has failed its probation and the way back failed too.
    """

    active: VersionRef | None = None
    previous: VersionRef | None = None
    deployment: Deployment | None = None
    quarantined: list[str] = []
    failures: dict[str, Failures] = {}
    receipt: SwapReceipt | None = None
    given_up: str = ""
    condemned: str = ""

    def versions(self) -> list[VersionRef]:
        """Return active, previous and the one that is being staged, as far as there are any."""
        staged = self.deployment.staged if self.deployment else None
        wanted = staged if self.deployment and self.deployment.state not in DONE else None
        return [version for version in (self.active, self.previous, wanted) if version]

    def needs(self) -> set[str]:
        """Return every digest that active, previous and target need in the store."""
        found: set[str] = set()
        for version in self.versions():
            found |= version.needs()
        deployment = self.deployment
        if deployment and deployment.state not in DONE and deployment.target.mode == "run":
            found.add(deployment.target.manifest)  # to serve nothing needs no package
        return found


class Document(msgspec.Struct, frozen=True):
    """The whole journal; `seq` grows with each write."""

    format: Literal[1] = 1
    seq: int = 0
    slots: dict[str, SlotRecord] = {}


def read_document(path: Path) -> Document:
    """Return the journal as it lies on disk; an empty one where there is none.

    Raises:
        InvalidInputError: The file is there and damaged (code `journal_damaged`); nothing that
            cannot be read is taken for empty.
    """
    data = durable.read_bytes(path)
    try:
        if data is None:
            return Document()
        return strict_json.decode(data, Document, max_bytes=MAX_BYTES, what="journal")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"The journal {path} is damaged: {error}",
            code="journal_damaged",
            hint="Move it away to start without models, then assign a version again.",
        ) from error


class Journal:
    """The document on disk, and in memory for readers in any thread.

    Args:
        path: `<state_dir>/journal.json`.

    Raises:
        InvalidInputError: As `read_document`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        durable.sweep(path.parent)
        self._document = read_document(path)

    @property
    def seq(self) -> int:
        """How often the journal was written."""
        return self._document.seq

    @property
    def slots(self) -> dict[str, SlotRecord]:
        """Every slot by name; a value of its own, safe to keep."""
        return dict(self._document.slots)

    def slot(self, name: str) -> SlotRecord:
        """Return one slot; an empty record for a slot never heard of."""
        return self._document.slots.get(name, SlotRecord())

    def write(self, name: str, record: SlotRecord) -> None:
        """Replace one slot's record, durably, before what it announces is done.

        Raises:
            OSError: It could not be written; the old document stands.
        """
        quarantined = record.quarantined[-KEPT_QUARANTINES:]
        record = msgspec.structs.replace(record, quarantined=quarantined)
        with self._lock:
            slots = {**self._document.slots, name: record}
            document = Document(seq=self._document.seq + 1, slots=slots)
            durable.atomic_write(self._path, strict_json.encode(document))
            self._document = document

    def versions(self) -> list[VersionRef]:
        """Return every version that any slot has, or is about to have."""
        return [v for record in self._document.slots.values() for v in record.versions()]

    def needs(self) -> set[str]:
        """Return every digest that any slot needs in the store."""
        found: set[str] = set()
        for record in self._document.slots.values():
            found |= record.needs()
        return found
