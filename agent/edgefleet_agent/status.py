"""What `edgefleet-agent status` shows: agentd's own file, and what the gateway says itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgefleet_agent import durable
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.swap_lock import SwapLock
from edgefleet_shared import strict_json
from edgefleet_shared.errors import InvalidInputError, UnavailableError
from edgefleet_shared.messages import SlotReport

MAX_BYTES = 1024 * 1024
OUTCOME = "imported.json"


class Status(msgspec.Struct, frozen=True):
    """agentd's view of itself."""

    pid: int
    boot: str
    device: str
    fleet: str
    connected: bool
    counter: int
    refused: str
    floor_lost: bool
    gateway: str
    slots: dict[str, SlotReport]
    outbox: dict[str, int]
    transport: str = ""
    transport_url: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What came of the last import: its entry in the inbox, and why it was refused or ''."""

    entry: str
    code: str
    message: str


class StatusFile:
    """`<run_dir>/status.json`, replaced on every change.

    Args:
        run: The run folder.
        boot: This start of the agent.
        fleet: The fleet's name.
        device: The device's id.
        way: The kind of transport and its address.
    """

    def __init__(self, run: Path, boot: str, fleet: str, device: str, way: tuple[str, str]) -> None:
        self._path = run / "status.json"
        self._pid_file = run / "agentd.pid"
        self._boot, self._fleet, self._device = boot, fleet, device
        self._transport, self._url = way
        durable.sweep(run)
        durable.atomic_write(self._pid_file, f"{os.getpid()}\n".encode(), 0o644)

    def write(
        self,
        *,
        connected: bool,
        counter: int,
        refused: str,
        floor_lost: bool,
        gateway: str,
        slots: Mapping[str, SlotReport],
        outbox: dict[str, int],
    ) -> None:
        """Replace the file."""
        status = Status(
            os.getpid(), self._boot, self._device, self._fleet, connected, counter, refused,
            floor_lost, gateway, dict(slots), outbox, self._transport, self._url,
        )  # fmt: skip
        durable.atomic_write(self._path, strict_json.encode(status), 0o644)

    def remove(self) -> None:
        """Remove it: nobody runs."""
        self._path.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)


def read_status(run: Path) -> dict[str, Any]:
    """Return agentd's status with `running` and the gateway's own `workers`, None if not known.

    Of an agentd that has died it is the last one, but that nothing is connected and that the
    gateway's state is its own.

    Raises:
        UnavailableError: agentd has never run here, or has ended (code `not_running`).
        InvalidInputError: The file is damaged.
    """
    data = durable.read_bytes(run / "status.json")
    if data is None:
        raise UnavailableError(
            f"No agent runs with run_dir {run}.",
            code="not_running",
            hint="Start it with 'edgefleet-agent run --config FILE', or give the right --config.",
        )
    status = strict_json.decode(data, Status, max_bytes=MAX_BYTES, what="file status.json")
    shown: dict[str, Any] = msgspec.to_builtins(status)
    shown["running"] = _alive(status.pid)
    shown["workers"], shown["sandbox"] = _workers(run)
    if not shown["running"]:
        shown["connected"] = False
        shown["gateway"] = "not known" if shown["workers"] is None else "up"
    shown["inference"] = {
        "socket": str(run / "infer.sock"),
        "tcp": _address(run / "infer.addr"),
        "grpc": _address(run / "infer-grpc.addr"),
    }
    return shown


def read_lock(state: Path) -> dict[str, Any]:
    """Return what holds swaps up: `locked`, a sentence or '', and `lock`, its parts or None."""
    try:
        lock = SwapLock(state).read()
    except OSError as error:
        why = f"Whether models are locked is not known: {error.strerror}."
        return {"locked": why, "lock": None}
    return {"locked": str(lock) if lock else "", "lock": msgspec.to_builtins(lock)}


def _address(file: Path) -> str:
    data = durable.read_bytes(file)
    return data.decode().strip() if data else ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _workers(run: Path) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Return the loaded digests, None if they are not known, and the last worker's sandbox."""
    with contextlib.suppress(UnavailableError, InvalidInputError):
        client = GatewayClient(run / "control.sock", lambda _: None)
        try:
            workers = [
                {"pid": worker.pid, "role": worker.role, "model": worker.model,
                 "version": worker.version, "digest": worker.digest,
                 "accelerated_pct": worker.accelerated_pct}
                for worker in client.state.workers
            ]  # fmt: skip
            return workers, client.state.sandbox
        finally:
            client.close()
    return None, []
