"""What waits to be written to twins: the newest of each kind a device, one write at a time each."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from edgefleet_cloud.iothub.tables import IotHubTwinRow
from edgefleet_shared import twin
from edgefleet_shared.errors import InvalidInputError

DESIRED, RENEW = "desired", "renew"
KINDS = frozenset({DESIRED, RENEW})


class Plan(NamedTuple):
    """A patch of a twin's desired properties, and what is known of the twin once it is written.

    `inline` says that a document lies in it, which may be too much for the twin; `module` whose
    twin it is, '' = the device's own.
    """

    patch: Mapping[str, Any]
    known: Mapping[str, str]
    inline: bool
    module: str = ""


@dataclass(eq=False)
class Letter:
    """What one device is to be told, and who waits for it. `plan` is made when it is its turn."""

    device: str
    words: dict[str, bytes]
    waiting: list[Future[None]] = field(default_factory=list)
    plan: Plan | None = None
    inline: bool = True

    def absorb(self, older: Letter) -> None:
        """Take over what an older letter says and this one does not, and who waits for it."""
        self.words = {**older.words, **self.words}
        self.waiting.extend(older.waiting)
        self.plan = None


def plan(letter: Letter, held: IotHubTwinRow | None, inline_max: int) -> Plan | None:
    """Return what must be written so that a twin says what a letter says; None if it does.

    Args:
        letter: What is to be said.
        held: What the twin is known to hold; unknown is never equal.
        inline_max: Bytes up to which a document lies in the twin itself.

    Raises:
        InvalidInputError: It fits into no twin.
    """
    section: dict[str, Any] = {}
    known: dict[str, str] = {}
    inline = False
    if (document := letter.words.get(DESIRED)) is not None:
        content = content_of(document)
        if held is None or held.content != content:
            patch = twin.document_patch(document, inline_max if letter.inline else 0)
            section |= patch[twin.SECTION]
            inline = bool(section["document"]["n"])
            known |= {"sha256": twin.digest(document), "content": content}
    if (word := letter.words.get(RENEW)) is not None:
        spelled = twin.digest(word)
        if held is None or held.renew != spelled:
            section |= twin.renew_patch(word)[twin.SECTION]
            known["renew"] = spelled
    module = held.module if held else ""
    return Plan({twin.SECTION: section}, known, inline, module) if section else None


def content_of(document: bytes) -> str:
    """Return the digest of a document without its time, which alone is no reason to write."""
    try:
        fields = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return hashlib.sha256(document).hexdigest()
    if isinstance(fields, dict):
        fields.pop("ts", None)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class Letters:
    """The queue. Safe from any thread.

    A letter is new until it was compared with what the twin holds (`new`, then `keep` or `done`),
    then due until it was written (`due`, then `done`, `back`, `park` or `fail`). While one of a
    device is in somebody's hands, none other of it is given out.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._new: OrderedDict[str, Letter] = OrderedDict()
        self._due: OrderedDict[str, Letter] = OrderedDict()
        self._in_hand: dict[str, Letter] = {}
        self._parked: dict[str, Letter] = {}
        self._poked = False
        self.done_count = 0

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, (self._new, self._due, self._in_hand, self._parked)))

    def put(self, device: str, kind: str, payload: bytes) -> Future[None]:
        """Add a word; the newest of its kind wins, and ends the older one's future with its own."""
        future: Future[None] = Future()
        letter = Letter(device, {kind: payload}, [future])
        with self._changed:
            if parked := self._parked.get(device):
                letter.absorb(parked)
                self._parked[device] = letter
                return future
            for queue in (self._due, self._new):
                if older := queue.pop(device, None):
                    letter.absorb(older)
            self._new[device] = letter
            self._poke()
        return future

    def new(self) -> Letter | None:
        """Take the oldest letter that was not looked at yet; None if there is none."""
        with self._changed:
            return self._take(self._new)

    def due(self, may: Callable[[str], bool]) -> Letter | None:
        """Take the oldest letter that is to be written, if its device may be written to now.

        `may` is asked once, with the lock held; what it returns True for is given out.
        """
        with self._changed:
            device = next((each for each in self._due if each not in self._in_hand), None)
            return self._take(self._due) if device is not None and may(device) else None

    def keep(self, letter: Letter) -> None:
        """A letter that was looked at must be written."""
        with self._changed:
            self._release(letter)
            if newer := self._new.get(letter.device):
                newer.absorb(letter)
            else:
                self._due[letter.device] = letter
            self._poke()

    def back(self, letter: Letter) -> None:
        """A letter could not be written: it is the first to be tried again."""
        with self._changed:
            self._release(letter)
            if newer := self._new.get(letter.device):
                newer.absorb(letter)
            else:
                self._due[letter.device] = letter
                self._due.move_to_end(letter.device, last=False)
            self._poke()

    def park(self, letter: Letter) -> None:
        """A letter waits until its device is known to the hub (`unpark`)."""
        with self._changed:
            self._release(letter)
            if newer := self._new.pop(letter.device, None):
                newer.absorb(letter)
                letter = newer
            self._parked[letter.device] = letter

    def unpark(self, device: str) -> None:
        """Look at a parked letter anew, if there is one."""
        with self._changed:
            if letter := self._parked.pop(device, None):
                letter.plan = None
                self._new[device] = letter
                self._poke()

    def done(self, letter: Letter, *, written: bool = True) -> None:
        """The twin says what the letter says; whoever waits is told."""
        with self._changed:
            self._release(letter)
            self.done_count += written
            self._poke()
        for future in letter.waiting:
            _end(future, None)

    def fail(self, letter: Letter, error: Exception) -> None:
        """A letter can never be written; whoever waits is told why."""
        with self._changed:
            self._release(letter)
            self._poke()
        for future in letter.waiting:
            _end(future, error)

    def wait(self, seconds: float) -> None:
        """Return when something has changed, or after some seconds."""
        with self._changed:
            if not self._poked:
                self._changed.wait(seconds)
            self._poked = False

    def poke(self) -> None:
        """Let whoever waits look again."""
        with self._changed:
            self._poke()

    def _poke(self) -> None:
        self._poked = True
        self._changed.notify_all()

    def _take(self, queue: OrderedDict[str, Letter]) -> Letter | None:
        device = next((each for each in queue if each not in self._in_hand), None)
        if device is None:
            return None
        letter = self._in_hand[device] = queue.pop(device)
        return letter

    def _release(self, letter: Letter) -> None:
        if self._in_hand.get(letter.device) is letter:
            del self._in_hand[letter.device]


def _end(future: Future[None], error: Exception | None) -> None:
    try:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
    except InvalidStateError:
        return  # whoever waited has cancelled it


def check_kind(kind: str) -> bool:
    """Return whether a topic's kind has a place in a twin.

    Raises:
        InvalidInputError: It has none, and is no topic on which the broker would keep a message.
    """
    if kind in KINDS:
        return True
    if kind in {"reported", "presence"}:
        return False  # emptied at a broker; a hub keeps nothing of them
    raise InvalidInputError(f"{kind!r} has no place in a twin.", code="twin")
