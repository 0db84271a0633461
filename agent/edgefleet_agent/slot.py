"""One model slot: takes commands one after another, and lets nothing stop what serves."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import msgspec

from edgefleet_agent import code_pages, recovery, swapping
from edgefleet_agent.activation import Activation
from edgefleet_agent.commands import (
    Assign,
    Command,
    Forbid,
    Nudge,
    Quarantined,
    Quit,
    Recover,
)
from edgefleet_agent.deployment import Staging
from edgefleet_agent.gateway_client import GatewayLostError
from edgefleet_agent.healing import Healing
from edgefleet_agent.ipc.control import Event
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.probation import Verdict
from edgefleet_agent.tidying import Tidying
from edgefleet_agent.toolbox import Toolbox
from edgefleet_agent.windows import Windows
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import SlotAssignment
from edgefleet_shared.states import DEPLOYMENT, DONE, DeploymentEvent, DeploymentState
from edgefleet_shared.steps import Step

_S, _E = DeploymentState, DeploymentEvent
_BEFORE_SWAP = {s for (s, e) in DEPLOYMENT if e is _E.RESUME}
logger = logging.getLogger("edgefleet")

RETRY_MIN_S = 2.0
RETRY_MAX_S = 300.0


class Slot:
    """The worker of one slot, with a thread of its own; blocked while there is nothing to do.

    Args:
        tools: The shared parts.
        ledger: The slot's page in the journal.

    Attributes:
        recovered: Set once what was active before has been brought up, or could not be.
    """

    def __init__(self, tools: Toolbox, ledger: Ledger) -> None:
        self._tools, self.ledger = tools, ledger
        self._inbox: deque[Command] = deque()
        self._stop = threading.Event()
        self._next: Assign | None = None
        self._standby_until = 0.0
        self._recover_due = False
        self._retry_s = RETRY_MIN_S
        self._forbidden: set[str] = set()
        self.recovered = threading.Event()
        self._staging = Staging(tools, ledger, self._stop)
        self._tidying = Tidying(tools, ledger, self._stop)
        self._activation = Activation(tools, ledger, self._stop)
        self._windows = Windows(tools, ledger, self._activation.routing, self._stop)
        self._healing = Healing(tools, ledger, self._activation, self._stop)
        self._thread = threading.Thread(target=self._run, name=f"slot-{ledger.name}", daemon=True)
        self._thread.start()

    def put(self, command: Command) -> None:
        """Hand over a command; what is under way stops where it can and lets it pass."""
        self._inbox.append(command)
        self._stop.set()

    def assign(self, target: SlotAssignment, blobs: str) -> None:
        """Hand over an assignment, unless it is the one under way or done already."""
        record = self.ledger.record
        current = record.deployment
        if self._next is None and current is not None and current.id == target.deployment:
            if current.state in DONE or current.blobs == blobs:
                return
        elif self._next is None and target.deployment in record.quarantined:
            return
        if self._next is None or self._next.target.deployment != target.deployment:
            self.put(Assign(target, blobs))

    def heed_floors(self) -> None:
        """Take a version that may no longer serve out of the gateway's reach."""
        previous = self.ledger.record.previous
        if previous is None or previous.digest in self._forbidden:
            return
        if self._tools.why_not_serve(previous.model, previous.release_counter):
            self._forbidden.add(previous.digest)
            self.put(Forbid(previous))

    def end(self, timeout_s: float = 5.0) -> None:
        """End the thread at the next point where nothing is half done."""
        self.put(Quit())
        self._thread.join(timeout_s)

    def _run(self) -> None:
        idle: float | None = None
        while True:
            self._stop.wait(idle)
            self._stop.clear()
            try:
                while self._inbox:
                    command = self._inbox.popleft()
                    if isinstance(command, Quit):
                        return
                    self._handle(command)
                self._go_on()
                idle = self._recover_again()
            except GatewayLostError as error:
                # The link brings another and sends Recover; nothing to do until then.
                self.ledger.tell(Step.ACTIVATE, error.code, str(error), level="warning")
                idle = None
            except Exception as error:  # noqa: BLE001 - a slot's thread never dies of a surprise
                self._trouble(error)
                idle = self._later()

    def _handle(self, command: Command) -> None:
        match command:
            case Assign():
                self._next = command
            case Recover():
                self._recover()
            case Quarantined(event):
                self._quarantined(event)
            case Forbid(version):
                # The gateway falls back by itself and knows no floors.
                if version != self.ledger.serving:
                    self._tools.gateway().release(version.digest, 0)
            case Nudge() | Quit():
                return

    def _go_on(self) -> None:
        """Do what comes next, until there is nothing to do or a command waits."""
        while not self._stop.is_set():
            self._supersede()
            deployment = self.ledger.record.deployment
            if deployment is None or deployment.state in DONE:
                self._tidy()
                return
            if deployment.target.mode == "stop":
                if not self._end_serving():
                    return
            elif deployment.state in _BEFORE_SWAP:
                if self._is_current():
                    continue
                if not self._towards_swap(deployment.state):
                    return
            elif deployment.state is _S.SWAPPING:
                self._activation.swap()
            elif deployment.state is _S.PROBATION:
                if self._activation.watch():
                    self._standby_until = time.monotonic() + deployment.target.policy.standby_s
            else:
                self._activation.roll_back(deployment.reason, deployment.detail)

    def _towards_swap(self, state: DeploymentState) -> bool:
        """Go a step towards the swap, or make it; return False while it has to wait."""
        if state is not _S.STAGED:
            self._tidying.release()
            self._staging.run()
        elif self._held() or not self._tools.together.may_swap(self.ledger.name, self._nudge):
            return False
        elif self._windows.passed():
            self._activation.swap()
        return True

    def _nudge(self) -> None:
        self.put(Nudge())

    def _held(self) -> bool:
        """Return whether the device's owner has locked it; say so, and come again when not."""
        lock = self._tools.together.locked(self.ledger.name, self._nudge)
        if lock is not None:
            self.ledger.hold("locked", str(lock))
        return lock is not None

    def _is_current(self) -> bool:
        serving, target = self.ledger.serving, self.ledger.deployment.target
        if serving is None or serving.digest != target.manifest:
            return False
        if self.ledger.deployment.state is not _S.ACCEPTED:
            self.ledger.move(_E.RESUME)
        self.ledger.move(_E.FOUND_CURRENT)
        return True

    def _supersede(self) -> None:
        """Let the newest assignment take over as soon as the table allows it."""
        if self._next is None:
            return
        record, target = self.ledger.record, self._next.target
        deployment = record.deployment
        if deployment is not None and deployment.id == target.deployment:
            # The same, but its blobs are served elsewhere now.
            moved = msgspec.structs.replace(deployment, blobs=self._next.blobs)
            self.ledger.write(deployment=moved)
            self._next = None
            return
        if deployment is not None and deployment.state not in DONE:
            if deployment.state in _BEFORE_SWAP:
                self.ledger.move(_E.SUPERSEDE)
            elif deployment.state is not _S.PROBATION:
                return  # the route is moving; it settles first
            elif record.previous and record.previous.digest == target.manifest:
                self._activation.roll_back("superseded", "The previous version was assigned.")
            else:
                detail = "A newer version was assigned before probation ended."
                self._activation.succeed(Verdict("inconclusive", "superseded", detail))
        self._standby_until = 0.0
        self.ledger.begin(target, self._next.blobs)
        self._next = None

    def _end_serving(self) -> bool:
        """Mode `stop`: the same states, passed at once; there is nothing to watch.

        Returns:
            Whether it is done; False while the device is locked.
        """
        ledger, serving = self.ledger, self.ledger.serving
        if ledger.deployment.state in _BEFORE_SWAP and self._held():
            return False
        if ledger.deployment.state not in {_S.SWAPPING, _S.PROBATION}:
            if ledger.deployment.state is not _S.ACCEPTED:
                ledger.move(_E.RESUME)
            for event in (_E.FETCH, _E.VERIFY, _E.PREPARE, _E.STAGE, _E.SWAP):
                ledger.move(event)
        if ledger.deployment.state is _S.SWAPPING:
            self._tools.gateway().unroute(ledger.name)
            name = ledger.deployment.id
            receipt = (
                swapping.unmeasured(self._tools, name, serving, None, "stop") if serving else None
            )
            ledger.serve(None)
            ledger.move(_E.SERVE, active=None, previous=None, receipt=receipt)
        self._activation.receipts.settle()
        ledger.move(_E.SUCCEED)
        return True

    def _recover(self) -> None:
        """Before anything else: what was active serves, or what can be had instead."""
        self._recover_due = True
        try:
            stats = self._tools.gateway().stats()
            running = {
                s.digest: s.role
                for s in stats
                if s.model == self.ledger.name and s.role != "released"
            }
            plan = recovery.plan(self.ledger.record, running)
            self._windows.end()
            self._make_room(running)
            if not self._healing.bring_up(plan, running, self.recovered):
                self._given_up("it crashed too often while agentd was away.")
            self._recover_due = plan.serve is not None and self.ledger.serving is None
            if not self._recover_due:
                self._retry_s = RETRY_MIN_S
            self._forbidden.clear()  # what was told to a gateway that went away was not done
            self.heed_floors()
        finally:
            self.recovered.set()

    def _make_room(self, running: dict[str, str]) -> None:
        """End what was loaded for a flip that never came, where there is room for one alone.

        A stand-in that answers meanwhile answers on.
        """
        record = self.ledger.record
        deployment = record.deployment
        known = {version.digest for version in record.versions()}
        if deployment is None or not deployment.drain:
            return
        if any(role == "active" and digest in known for digest, role in running.items()):
            return
        for digest in [digest for digest, role in running.items() if role != "active"]:
            self._tools.gateway().release(digest, 0)
            del running[digest]

    def _recover_again(self) -> float | None:
        """Return how long to wait before the next try to bring the slot up; None if it is up."""
        if not self._recover_due or self._stop.is_set():
            return None
        if self.ledger.serving is not None:
            self._recover_due = False  # a newer version has taken its place
            return None
        self._inbox.append(Recover())
        return self._later()

    def _later(self) -> float:
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
        return self._retry_s

    def _quarantined(self, event: Event) -> None:
        record = self.ledger.record
        if record.active and record.active.digest == event.digest:
            if self._healing.repair(record.active):
                return
            self._given_up(event.message or "it crashed too often.")

    def _given_up(self, message: str) -> None:
        """Go back, because the gateway restarts the active version no more."""
        self.ledger.tell(Step.INFER, "quarantined", message, level="error")
        deployment = self.ledger.record.deployment
        if deployment and deployment.state is _S.PROBATION:
            self._activation.roll_back("crashes", message)
        elif deployment is None or deployment.state in DONE | _BEFORE_SWAP:
            self._healing.fall_back()

    def _tidy(self) -> None:
        """Wait out the warm standby, then give up what nobody needs: workers and blobs."""
        self._activation.receipts.settle()
        rest = self._standby_until - time.monotonic()
        if rest > 0 and self._stop.wait(rest):
            return
        self._tidying.release()
        if self._healing.bring_back():
            self._tidying.release()
        self._tidying.containers()
        self._tools.store.collect(self._tools.journal.needs())
        self._tidying.prepare_again()
        code_pages.let_go()  # of what checking signatures and fetching needed

    def _trouble(self, error: Exception) -> None:
        code = error.code if isinstance(error, EdgeFleetError) else type(error).__name__
        self.ledger.tell(Step.ACTIVATE, code, f"{error} It is tried again.", level="error")
        if not isinstance(error, EdgeFleetError | OSError):
            logger.error("a fault in agentd itself", exc_info=error)
