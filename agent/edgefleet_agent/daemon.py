"""agentd: one thread that decides, one queue that everything arrives by."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from edgefleet_agent import orders
from edgefleet_agent.commands import Quarantined, Recover
from edgefleet_agent.config import Config
from edgefleet_agent.events import Emitter
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.gateway_link import GatewayLink
from edgefleet_agent.identity import Identity
from edgefleet_agent.intake import Intake
from edgefleet_agent.ipc import control
from edgefleet_agent.ledger import Ledger
from edgefleet_agent.locked import Locked
from edgefleet_agent.notify import Notifier
from edgefleet_agent.ports import Transport
from edgefleet_agent.receiver import Receiver
from edgefleet_agent.renewer import Renewer
from edgefleet_agent.reporting import Facts, Reporter, Sender
from edgefleet_agent.slot import Slot
from edgefleet_agent.status import StatusFile
from edgefleet_agent.swap_lock import SwapLock
from edgefleet_agent.toolbox import Toolbox
from edgefleet_agent.trust.acceptance import Acceptance, Accepted
from edgefleet_agent.twin_settings import Live
from edgefleet_shared.errors import EdgeFleetError
from edgefleet_shared.messages import DESIRED_MAX_BYTES, SlotReport
from edgefleet_shared.steps import Step

logger = logging.getLogger("edgefleet")

RECOVER_S = 60.0
"""After this long the fleet manager is called even if a slot could not be brought up."""
QUEUE_MAX = 32
IDLE_S = 30.0


class Parts(NamedTuple):
    """What `compose.py` builds and the daemon runs.

    `mendable`: where the transport does not take who we are, a renewed certificate may help.
    `live`: settings that may change meanwhile.
    """

    config: Config
    identity: Identity
    acceptance: Acceptance
    tools: Toolbox
    emitter: Emitter
    transport: Transport
    boot: str
    status: StatusFile
    notifier: Notifier
    live: Live
    mendable: bool


class Daemon:
    """The whole agent at run time.

    Args:
        parts: What it is made of.
        link: Makes the link to the gateway, given who is to be told.
    """

    def __init__(self, parts: Parts, link: Callable[[Daemon], GatewayLink]) -> None:
        self._parts = parts
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._dirty, self._woken = threading.Event(), threading.Event()
        parts.emitter.told = self._wake
        self._over = False
        self._end_gateway = True
        self._connected = self._distrusted = False
        self._missed: bytes | None = None
        self._slots: dict[str, Slot] = {}
        self._link = link(self)
        self._next_window = time.monotonic() + parts.live.interval_s
        tools, signer = parts.tools, parts.identity.signer
        self._facts = Facts(tools.hardware, tools.machine.usable, tools.machine.unavailable)
        self._reporter = Reporter(
            parts.identity.device, parts.boot, signer, tools.outbox, parts.transport,
            self.reports, self._facts, tools.stamp,
        )  # fmt: skip
        self._sender = Sender(
            parts.identity.device, parts.boot, signer, tools.outbox, parts.transport,
            tools.stamp, self._changed,
        )  # fmt: skip
        tools.containers.tell(self.on_gateway_event)
        self._receiver = Receiver(
            parts.acceptance, parts.emitter, self._facts, self._slots, self._apply, self._changed
        )
        self._intake = Intake(
            parts.config, parts.identity, parts.acceptance, tools, parts.emitter, self._receiver,
            lambda payload: self._queue.put(lambda: self._receive(payload)),
        )  # fmt: skip
        self._renewer = Renewer(
            parts.config.identity, parts.identity, parts.acceptance, parts.emitter,
            self._queue.put, self._renewal_ended,
        )  # fmt: skip

        self._locked = Locked(
            SwapLock(parts.config.state), parts.emitter, self._facts, self._slot_changed
        )

    def gateway(self) -> GatewayClient:
        """Return the connection to the gateway, or raise `GatewayLostError`."""
        return self._link.client

    def reports(self) -> dict[str, SlotReport]:
        """Return every slot's report."""
        slots = dict(self._slots)
        return {name: report for name, slot in slots.items() if (report := slot.ledger.report())}

    # Called from the threads of transport and link: each hands over and returns.

    def on_connected(self) -> None:
        """The transport stands."""
        self._queue.put(self._greet)

    def on_disconnected(self, reason: str) -> None:
        """The transport is gone."""
        self._queue.put(lambda: self._part(reason))

    def on_refused(self, reason: str) -> None:
        """The transport and we do not trust each other."""
        self._queue.put(lambda: self._distrust(reason))

    def on_desired(self, payload: bytes) -> None:
        """A desired document has come."""
        # A flood is cut, and what it cut is asked for again later; of one too long only as much is
        # kept as shows that it is.
        if self._queue.qsize() < QUEUE_MAX:
            kept = payload[: DESIRED_MAX_BYTES + 1]
            self._queue.put(lambda: self._receive(kept))
        else:
            self._intake.cut()

    def on_renew(self, payload: bytes) -> None:
        """A word has come that asks to renew the key."""
        if self._queue.qsize() < QUEUE_MAX:
            self._queue.put(lambda: self._renewer.asked(payload))

    def look_into_inbox(self) -> None:
        """Something may have come by hand; safe in a signal handler."""
        self._queue.put(self._intake.look)

    def renew(self) -> None:
        """Renew the key now; safe in a signal handler."""
        self._queue.put(self._renewer.force)

    def on_gateway_up(self, client: GatewayClient) -> None:
        """A gateway answers."""
        self._queue.put(lambda: self._gateway_up(client))

    def on_gateway_down(self, reason: str) -> None:
        """The gateway is gone."""
        self._queue.put(lambda: self._gateway_down(reason))

    def on_gateway_event(self, event: control.Event) -> None:
        """The gateway tells something."""
        self._queue.put(lambda: self._gateway_event(event))

    def end(self, *, end_gateway: bool = True) -> None:
        """Let `run` come to its end; safe in a signal handler.

        Args:
            end_gateway: End the gateway and its workers too; else they serve on, for the next
                agentd to find.
        """
        self._end_gateway = end_gateway
        self._queue.put(self._end)

    def run(self) -> None:
        """Run until `end` is called."""
        parts = self._parts
        self._facts.counter = parts.acceptance.counter
        self._receiver.look()
        last = self._receiver.last()
        if last:
            parts.tools.together.expect(last.assignment.slots)
        for name in parts.tools.journal.slots:
            self._slot(name)
        self._link.start()
        self._first_recovery()
        if last:
            self._apply(last)
        self._intake.lacking(connected=False)
        if not self._over:
            parts.transport.start(self)
            parts.notifier.ready()
        while not self._over:
            self._turn(None)
        self._finish()

    def _first_recovery(self) -> None:
        """What served before serves again, before anything is asked of the cloud."""
        deadline = time.monotonic() + RECOVER_S
        while not self._over and time.monotonic() < deadline:
            if all(slot.recovered.is_set() for slot in self._slots.values()):
                return
            self._turn(0.05)

    def _turn(self, timeout_s: float | None) -> None:
        """Take one thing from the queue, once what time asks for is done."""
        try:
            if timeout_s is None:
                timeout_s = self._timers()
            self._queue.get(timeout=timeout_s)()
        except queue.Empty:
            return
        except Exception as error:
            known = isinstance(error, EdgeFleetError | OSError)
            code = error.code if isinstance(error, EdgeFleetError) else type(error).__name__
            self._parts.emitter.tell(Step.REPORT, code, str(error), level="error")
            if not known:
                logger.exception("a fault in agentd itself")

    def _timers(self) -> float:
        """Do what time asks for; return how long the queue may be waited for."""
        now = time.monotonic()
        self._parts.notifier.alive()
        self._receiver.look()
        self._locked.look()
        if now >= self._next_window:
            self._next_window = now + self._parts.live.interval_s
            self._close_windows()
        waits = [IDLE_S, self._renewer.wait_s(), self._intake.wait_s()]
        waits += [self._next_window - now, self._parts.notifier.interval_s]
        if self._dirty.is_set():
            self._dirty.clear()
            self._write_status()
        if self._connected:
            self._sender.send()
            rest = self._reporter.publish_if_due()
            waits.append(min(rest, 1.0) if rest is not None else IDLE_S)
            waits.append(5.0 if self._sender.busy else IDLE_S)
        return max(0.0, min(waits))

    def _changed(self) -> None:
        """Wake the main thread once, however many changes come."""
        self._dirty.set()
        self._wake()

    def _wake(self) -> None:
        if not self._woken.is_set():
            self._woken.set()
            self._queue.put(self._woken.clear)  # one at a time: a flood must not grow by it

    def _slot_changed(self) -> None:
        self._changed()
        self._parts.tools.together.wake()

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            parts = self._parts
            ledger = Ledger(
                name, parts.tools.journal, parts.emitter, parts.tools.stamp, self._slot_changed
            )
            self._slots[name] = Slot(parts.tools, ledger)
        return self._slots[name]

    def _greet(self) -> None:
        self._connected, self._distrusted = True, False
        self._renewer.trusted()
        self._reporter.forget()
        self._parts.emitter.tell(Step.REPORT, "connected", "connected to the fleet manager.")
        self._parts.transport.request_desired(self._parts.acceptance.counter)
        self._intake.lacking(connected=True)
        self._changed()

    def _part(self, reason: str) -> None:
        if self._connected:
            self._parts.emitter.tell(
                Step.REPORT, "disconnected", f"disconnected: {reason}.", level="warning"
            )
        self._connected = False
        self._intake.lacking(connected=False)
        self._changed()

    def _distrust(self, reason: str) -> None:
        """Tell it once, however often it is tried."""
        if not self._distrusted:
            self._parts.emitter.tell(Step.REPORT, "certificate_refused", reason, level="error")
        self._distrusted = True
        if self._parts.mendable:
            self._renewer.distrusted()

    def _renewal_ended(self, renewed: bool) -> None:
        missed, self._missed = self._missed, None
        if renewed:
            self._parts.transport.renewed()  # which brings the newest document again
        elif missed is not None:
            self._receive(missed)

    def _receive(self, payload: bytes) -> None:
        if self._renewer.busy:
            # It may be for the key that we do not have yet. Kept, as nobody may answer if asked.
            self._missed = payload
            return
        self._intake.receive(payload)

    def _apply(self, accepted: Accepted) -> None:
        self._facts.counter = accepted.assignment.counter
        when_empty = self._parts.config.empty_assignment
        slots = orders.slots_of(accepted.assignment, self._slots, when_empty)
        self._parts.tools.together.expect(slots)
        for name, target in slots.items():
            slot = self._slot(name)
            if not slot.recovered.is_set() and not slot.ledger.record.deployment:
                slot.recovered.set()  # it never ran: there is nothing to bring up
            slot.assign(target, accepted.blobs)

    def _gateway_up(self, client: GatewayClient) -> None:
        self._facts.agent["gateway"] = "up"
        self._parts.emitter.tell(
            Step.INFER, "gateway_up", f"the gateway runs (pid {client.state.pid}).", level="debug"
        )
        for slot in self._slots.values():
            slot.put(Recover())
        self._note_sandbox(client.state.sandbox)
        self._changed()

    def _note_sandbox(self, layers: list[str]) -> None:
        """Report what workers are shut in by; an old kernel is no reason not to serve."""
        if not layers or layers == self._facts.agent.get("sandbox"):
            return
        self._facts.agent["sandbox"] = layers
        if missing := control.missing_layers(layers):
            self._parts.emitter.tell(
                Step.PROVE,
                "sandbox_incomplete",
                f"workers run without {', '.join(missing)}, which this kernel does not give.",
                level="warning",
            )
        self._changed()

    def _gateway_down(self, reason: str) -> None:
        self._facts.agent["gateway"] = "down"
        self._parts.emitter.tell(
            Step.INFER, "gateway_down", f"{reason} It is started again.", level="error"
        )
        self._changed()

    def _gateway_event(self, event: control.Event) -> None:
        if event.code == "quarantined" and event.model in self._slots:
            self._slots[event.model].put(Quarantined(event))
            return
        if event.code == "sandbox":
            self._note_sandbox(event.message.split(", "))
            return
        if event.code == "prepared_unused":
            self._parts.tools.prepared.forget_package(event.digest)
        self._parts.emitter.tell(
            Step.INFER,
            event.code,
            event.message,
            level="warning",
            slot=event.model,
            digest=event.digest,
        )

    def _close_windows(self) -> None:
        client = self._link.client
        self._parts.tools.telemetry.close_windows(client.state.boot, client.stats())
        self._changed()

    def _write_status(self) -> None:
        parts = self._parts
        parts.status.write(
            connected=self._connected,
            counter=self._facts.counter,
            refused=self._facts.refused,
            floor_lost=parts.acceptance.floor_lost,
            gateway=str(self._facts.agent.get("gateway", "down")),
            slots=self.reports(),
            outbox=parts.tools.outbox.counts(),
        )

    def _end(self) -> None:
        self._over = True

    def _finish(self) -> None:
        parts = self._parts
        parts.notifier.stopping()
        for slot in self._slots.values():
            slot.end()
        self._link.stop(end_gateway=self._end_gateway)
        parts.tools.containers.close()
        parts.transport.stop()
        parts.status.remove()
        parts.tools.outbox.close()
