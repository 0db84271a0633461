"""The loop of a model that is run in batches: this thread receives, others run what waits."""

from __future__ import annotations

import socket

from edgefleet_agent.ipc import frames
from edgefleet_agent.worker.answering import Answerer, refusal
from edgefleet_agent.worker.batch_queue import BatchQueue
from edgefleet_agent.worker.joint import Joint, Member, Ran
from edgefleet_agent.worker.loop import Loop, framed, lacks_memory
from edgefleet_agent.worker.pace import Pace
from edgefleet_agent.worker.pool import Pool
from edgefleet_shared.manifest import Batching


class BatchLoop(Loop):
    """Lets requests wait in a queue, from which threads take as many at once as may be.

    A request that must be alone is run in this thread, after everything that came before it is
    answered and before anything else is received.

    Args:
        sock: The gateway's socket, blocking.
        buffer: What has been received from it.
        answerer: Reads requests.
        pace: How long the model runs.
        pool: Threads for the runs.
        joint: Runs them.
        batching: How many at once.
    """

    def __init__(
        self,
        sock: socket.socket,
        buffer: frames.FrameBuffer,
        answerer: Answerer,
        pace: Pace,
        pool: Pool,
        joint: Joint,
        batching: Batching,
    ) -> None:
        super().__init__(sock, buffer, answerer, pace, pool)
        self._joint = joint
        self._threads = pool
        self._queue = BatchQueue(batching, lambda: pace.median_ns)

    def _serve(self, frame: frames.Frame) -> None:
        alone = frame[0] & ~frames.FAST == frames.INFER_ALONE
        if alone:
            self._queue.settle()
        member = self._read(frame)
        if member is None:
            return
        if alone:
            self._run([member], again=False)
        else:
            self._queue.put(member)
            self._threads.put(self._run_next, alone=False)

    def _read(self, frame: frames.Frame) -> Member | None:
        """Return a request that is good; what is not is answered, and harms no other."""
        _, client, number, json_length, deadline, body = frame
        body, memory = self._buffer.keep(body)
        try:
            request = self._answerer.decode(body, json_length, client)
        except Exception as error:  # noqa: BLE001 - one bad request must not end the worker
            self._give_memory_back(memory)
            self._send_frame(b"".join(framed(number, refusal(error, 0))))
            return None
        return Member(number, request, self._joint.shape(request), deadline, memory)

    def _run_next(self) -> None:
        """Run what is next, unless others have taken it along: there is one call a request."""
        if members := self._queue.take():
            self._queue.done(self._run(members, again=True))

    def _run(self, members: list[Member], *, again: bool) -> int:
        """Run and answer requests; return how many are answered."""
        done = self._joint.answer(members)
        for ran in done.runs:
            self._pace.ran(ran.spent)
        parts = [_told(ran) for ran in done.runs]
        answered = 0
        for member, answer in done.answers:
            if again and lacks_memory(answer):
                self._once_more(member)
                continue
            parts += framed(member.number, answer)
            self._give_memory_back(member.memory)
            answered += 1
        self._send_frame(b"".join(parts))
        return answered

    def _once_more(self, member: Member) -> None:
        """Run it while nothing else runs: the package's limit is for one run at a time."""
        self._threads.narrow()
        self._threads.put(lambda: self._queue.done(self._run([member], again=False)), alone=True)

    def _give_memory_back(self, memory: memoryview | None) -> None:
        if memory is not None:
            self._buffer.recycle(memory)


def _told(ran: Ran) -> bytes:
    rows = min(ran.rows, frames.ROWS_MAX)
    return frames.head(frames.RAN, rows, ran.requests, frames.NO_JSON, ran.spent, 0)
