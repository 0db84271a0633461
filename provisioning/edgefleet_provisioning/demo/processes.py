"""The demo's real parts as processes: started, waited for, and surely ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgefleet_shared.errors import UnavailableError

STOP_S = 10.0
PIDS = "pids.json"


class Processes:
    """Processes of one demo; each logs into `folder/logs/<name>.log`.

    `folder/pids.json` names them as long as they may run: a demo that was killed can be ended.
    """

    def __init__(self, folder: Path) -> None:
        self._pids = folder / PIDS
        self._lock = threading.Lock()
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own; an ended one of that name is forgotten."""
        if ended := self._running.pop(name, None):
            ended.wait(STOP_S)
        with self._lock, (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running[name] = process
            pids = {name: process.pid for name, process in self._running.items()}
            self._pids.write_text(json.dumps(pids))
        return process

    def wait_for(self, name: str, what: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready()`.

        Raises:
            UnavailableError: The process ended or the time is over; holds the log's last lines.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            ended = self._running[name].poll() is not None
            if ended or time.monotonic() > deadline:
                raise UnavailableError(
                    f"{name} {'ended' if ended else 'took too long'} before {what}.",
                    code="demo_process",
                    hint=f"Its log ends with:\n{self.log_tail(name)}",
                )
            time.sleep(0.03)

    def log_tail(self, name: str) -> str:
        """Return the last lines of a process's log."""
        path = self._logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-12:])

    def end(self, name: str) -> None:
        """End one process and wait for it."""
        process = self._running.pop(name)
        process.terminate()
        process.wait(STOP_S)

    def end_all(self) -> None:
        """End every process, last started first; SIGKILL for the ones that do not listen."""
        running = list(reversed(self._running.values()))
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in running:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()


def is_running(pid: int, folder: Path) -> bool:
    """Return whether `pid` is a process of the demo in `folder`, and no zombie: pids are reused."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return "State:\tZ" not in status and os.fsencode(folder) in command


def run(argv: Sequence[str], seconds: float = 60.0) -> str:
    """Run a command of ours to its end and return what it printed.

    Raises:
        UnavailableError: It failed; the message is what it printed.
    """
    finished = subprocess.run(
        [sys.executable, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
        text=True,
    )
    if finished.returncode:
        raise UnavailableError(
            f"`{' '.join(argv)}` failed ({finished.returncode}): "
            f"{(finished.stderr or finished.stdout).strip()[-2000:]}",
            code="demo_command",
        )
    return finished.stdout


def run_json(argv: Sequence[str]) -> Any:
    """Run a command of ours with `--json` and return its last line, decoded.

    Raises:
        UnavailableError: It failed; the message is what it printed.
    """
    return json.loads(run([*argv, "--json"]).strip().splitlines()[-1])
