"""Several requests as one run of the model; each gets its own answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from edgefleet_agent.ports import Session
from edgefleet_agent.worker import rows
from edgefleet_agent.worker.answering import TOO_LATE, Answer, Answerer, Request, refusal
from edgefleet_agent.worker.processing.around import Around
from edgefleet_agent.worker.processing.images import Geometry
from edgefleet_agent.worker.rows import Arrays, Shape

_PICTURE = ("picture",)  # the key of what only processing turns into the model's input


class Member:
    """A request that was decoded and waits for its run.

    Args:
        number: The gateway's id of it.
        request: What it asks.
        shape: What it may be joined by, and its rows.
        deadline: When its answer is worth nothing any more, nanoseconds on CLOCK_MONOTONIC.
        memory: The buffer that its arrays are views of, if they are of one.
    """

    __slots__ = ("arrived", "deadline", "key", "memory", "number", "request", "rows")

    def __init__(
        self,
        number: int,
        request: Request,
        shape: Shape,
        deadline: int,
        memory: memoryview | None = None,
    ) -> None:
        self.number = number
        self.request = request
        self.key, self.rows = shape
        self.deadline = deadline
        self.memory = memory
        self.arrived = time.monotonic_ns()


class Ran(NamedTuple):
    """One run of the model: its rows, the requests that it answered, and its nanoseconds."""

    rows: int
    requests: int
    spent: int


class Done(NamedTuple):
    """What came of some requests."""

    answers: list[tuple[Member, Answer]]
    runs: list[Ran]


class _Ready(NamedTuple):
    """A request as the bare model takes it, and where in an image its points lie."""

    member: Member
    inputs: Arrays
    geometry: Geometry | None


class Joint:
    """Runs requests of one model.

    Args:
        session: The bare model.
        around: The processing that its package declares, if any.
        answerer: Encodes answers.
        outputs: Names of the bare model's outputs.
        pictures: Whether that processing makes the input, so that its first axis counts no rows.
    """

    def __init__(
        self,
        session: Session,
        around: Around | None,
        answerer: Answerer,
        outputs: Sequence[str],
        *,
        pictures: bool,
    ) -> None:
        self._session = session
        self._around = around
        self._answerer = answerer
        self._outputs = outputs
        self._pictures = pictures

    def shape(self, request: Request) -> Shape:
        """Return by what a request may be joined to others, as far as its inputs tell now."""
        if self._pictures and not request.raw:
            return Shape(_PICTURE, 1)
        return rows.shape_of(request.inputs)

    def answer(self, members: Sequence[Member]) -> Done:
        """Answer requests, as one run where that can be; never raises.

        One that is too late or cannot be prepared is answered by itself. If the run of all fails,
        each is run alone, so that only the guilty fail.
        """
        done = Done([], [])
        ready: dict[object, list[_Ready]] = {}
        now = time.monotonic_ns()
        for member in members:
            if member.deadline < now:
                done.answers.append((member, TOO_LATE))
                continue
            try:
                one = self._prepare(member)
            except Exception as error:  # noqa: BLE001 - one bad request must not end the worker
                done.answers.append((member, refusal(error, 0)))
                continue
            key = rows.shape_of(one.inputs).key
            ready.setdefault(member.number if key is None else key, []).append(one)
        for group in ready.values():
            if len(group) == 1 or not self._as_one(group, done):
                for one in group:
                    self._alone(one, done)
        return done

    def _prepare(self, member: Member) -> _Ready:
        request = member.request
        if self._around is None or request.raw:
            return _Ready(member, request.inputs, None)
        return _Ready(member, *self._around.before(request.inputs))

    def _as_one(self, group: Sequence[_Ready], done: Done) -> bool:
        """Run a group; False if it cannot be run as one, and nobody is answered."""
        counts = [rows.shape_of(one.inputs).rows for one in group]
        try:
            joined = rows.join([one.inputs for one in group])
            begun = time.perf_counter_ns()
            found = self._session.run(joined)
            spent = time.perf_counter_ns() - begun
            parts = list(rows.split(found, self._outputs, counts))
        except Exception:  # noqa: BLE001 - asked alone, the guilty will say what is wrong
            return False
        total = sum(counts)
        done.runs.append(Ran(total, len(group), spent))
        for one, part, count in zip(group, parts, counts, strict=True):
            share = spent * count // total  # what it cost, by which a version is judged
            done.answers.append((one.member, self._finish(one, part, share)))
        return True

    def _alone(self, one: _Ready, done: Done) -> None:
        begun = time.perf_counter_ns()
        try:
            found = self._session.run(one.inputs)
        except Exception as error:  # noqa: BLE001 - one bad request must not end the worker
            done.answers.append((one.member, refusal(error, 0)))
            return
        spent = time.perf_counter_ns() - begun
        done.runs.append(Ran(rows.shape_of(one.inputs).rows, 1, spent))
        done.answers.append((one.member, self._finish(one, found, spent)))

    def _finish(self, one: _Ready, found: Arrays, spent: int) -> Answer:
        request = one.member.request
        try:
            if self._around is not None and not request.raw:
                found = self._around.after(found, one.geometry)
            return self._answerer.encode(request, found, spent)
        except Exception as error:  # noqa: BLE001 - one bad request must not end the worker
            return refusal(error, spent)
