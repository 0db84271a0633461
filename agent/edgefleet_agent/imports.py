"""agentd's side of an import: judge what lies in the inbox, say so, and remove what is over."""

from __future__ import annotations

from pathlib import Path

from edgefleet_agent import durable
from edgefleet_agent.inbox import Inbox
from edgefleet_agent.journal import Journal
from edgefleet_agent.receiver import Receiver
from edgefleet_agent.status import OUTCOME, Outcome
from edgefleet_shared import strict_json
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import Assignment
from edgefleet_shared.states import DONE


class Imports:
    """The main thread's view of the inbox.

    Args:
        inbox: What came by hand.
        receiver: Judges it as it judges everything.
        journal: Says which deployments are over.
        run: The run folder, in which the importer waits for our word.
    """

    def __init__(self, inbox: Inbox, receiver: Receiver, journal: Journal, run: Path) -> None:
        self._inbox, self._receiver, self._journal, self._run = inbox, receiver, journal, run
        self._open: dict[str, Assignment] = {}

    def look(self) -> None:
        """Take up what is new, and remove what has been done or overtaken."""
        for name in self._inbox.names():
            if name not in self._open:
                self._take(name)
        newest = max((a.counter for a in self._open.values()), default=0)
        for name, assignment in list(self._open.items()):
            if assignment.counter < newest or self._is_over(assignment):
                del self._open[name]
                self._inbox.remove(name)

    def _take(self, name: str) -> None:
        try:
            received = self._receiver.receive(self._inbox.document(name))
            error = received.error
        except EdgeFleetError as unreadable:
            received, error = None, unreadable
        told = Outcome(name, error.code if error else "", error.message if error else "")
        durable.atomic_write(self._run / OUTCOME, strict_json.encode(told), 0o644)
        if received is None or received.assignment is None:
            self._inbox.remove(name)
        else:
            self._open[name] = received.assignment

    def _is_over(self, assignment: Assignment) -> bool:
        for name, slot in assignment.slots.items():
            record = self._journal.slot(name)
            deployment = record.deployment
            done = deployment and deployment.id == slot.deployment and deployment.state in DONE
            if not done and slot.deployment not in record.quarantined:
                return False
        return True
