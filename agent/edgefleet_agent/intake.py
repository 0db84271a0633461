"""Every way by which a desired document reaches agentd: transport, HTTP, and by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgefleet_agent import asking
from edgefleet_agent.asking import Asking
from edgefleet_agent.config import Config
from edgefleet_agent.events import Emitter
from edgefleet_agent.identity import Identity
from edgefleet_agent.imports import Imports
from edgefleet_agent.receiver import Receiver
from edgefleet_agent.toolbox import Toolbox
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.steps import Step

UNWRITTEN_S = 2.0
"""A document that the disk did not take is looked at again after this long."""


class Intake:
    """What is asked for, what has come, and what came of it.

    Args:
        config: How often to ask.
        identity: Whose document.
        acceptance: Tells the device's time.
        tools: Inbox and journal.
        emitter: Told of questions without an answer.
        receiver: Judges.
        deliver: Hands a document to the main thread, from any thread.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        acceptance: Acceptance,
        tools: Toolbox,
        emitter: Emitter,
        receiver: Receiver,
        deliver: Callable[[bytes], None],
    ) -> None:
        self._emitter, self._receiver, self._deliver = emitter, receiver, deliver
        self._imports = Imports(tools.inbox, receiver, tools.journal, config.run)
        self._asking = Asking(
            config.transport.ask_s,
            lambda: asking.fetch(identity, acceptance.now()),
            self._answered,
            self._unanswered,
        )
        self._connected = False
        self._unwritten: tuple[float, bytes] | None = None
        self._cut, self._nothing = threading.Event(), threading.Event()

    def lacking(self, *, connected: bool) -> None:
        """The transport has come or gone: whether it brings a document has yet to be seen."""
        self._connected = connected
        self._asking.lacking()

    def cut(self) -> None:
        """A document was dropped, unread; from any thread."""
        self._cut.set()

    def receive(self, payload: bytes) -> None:
        """Judge a document that has come by the transport or over HTTP.

        Raises:
            OSError: The disk took nothing; the document is judged again in a while.
        """
        try:
            received = self._receiver.receive(payload)
        except OSError:
            self._unwritten = (time.monotonic() + UNWRITTEN_S, payload)
            raise
        if received.error:
            self._asking.lacking()
        elif self._connected:
            self._asking.satisfied()

    def look(self) -> None:
        """Look into the inbox."""
        self._imports.look()

    def wait_s(self) -> float:
        """Do what is due; return in how many seconds to come again."""
        if self._cut.is_set():
            self._cut.clear()
            self._asking.lacking()
        if self._nothing.is_set():
            self._nothing.clear()
            if self._connected:
                self._asking.satisfied()
        try:
            self.look()
        except OSError as error:  # a disk that takes nothing must not keep the rest from going on
            self._emitter.tell(Step.RECEIVE, "OSError", str(error), level="error")
        return min(self._asking.wait_s(), self._again_s())

    def _again_s(self) -> float:
        if self._unwritten is None:
            return asking.LOOK_S
        due, payload = self._unwritten
        if (left := due - time.monotonic()) <= 0:
            self._unwritten = None
            self._deliver(payload)
        return max(0.0, left)

    # From the thread that asks.

    def _answered(self, payload: bytes | None) -> None:
        if payload is None:
            self._nothing.set()
        else:
            self._deliver(payload)

    def _unanswered(self, error: EdgeFleetError) -> None:
        self._emitter.tell(Step.RECEIVE, error.code, str(error), level="debug")
