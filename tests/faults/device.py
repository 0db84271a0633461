"""A device whose agentd is a process that can be killed; gateway and cloud are the test's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

from edgefleet_agent import durable
from edgefleet_agent.journal import Document, SlotRecord
from edgefleet_shared import strict_json
from tests.agent.world import World, until
from tests.fakes.fake_gateway import FakeGateway
from tests.fakes.memory_transport import opened


class Device:
    """One device of a world, with a folder for its disk and one for its network."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
        self.state, self.run, self.net = (self.folder / n for n in ("state", "run", "net"))
        self.run.mkdir()
        self.net.mkdir()
        self.identity = world.enrolled(self.state)
        self.toml = self.folder / "agent.toml"
        self.toml.write_text(f'state_dir = "{self.state}"\nrun_dir = "{self.run}"\n')
        self.gateway = FakeGateway(self.run)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = (self.folder / "log").open("ab")

    def start(self, *before: str, **environ: str) -> None:
        """Start agentd, perhaps behind another command, with so much more in its environment."""
        agentd = [sys.executable, "-m", "tests.faults.agentd", str(self.toml), str(self.net)]
        self.process = subprocess.Popen(
            [*before, *agentd],
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environ},
            start_new_session=True,
        )

    def kill(self) -> None:
        """`kill -9` agentd, and what it was started behind."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def cut_power(self) -> None:
        """End gateway and agentd at once; a gateway that knows nothing comes after."""
        self.kill()
        self.gateway.close()
        self.gateway = FakeGateway(self.run)

    def assign(self, *slots: Any) -> None:
        """Put an assignment into the network folder."""
        durable.atomic_write(self.net / "desired", self.world.assign(self.identity, *slots))

    def document(self) -> Document:
        """Return the journal as it is on disk."""
        data = durable.read_bytes(self.state / "journal.json")
        if data is None:
            return Document()
        return strict_json.decode(data, Document, max_bytes=len(data), what="journal")

    def record(self) -> SlotRecord:
        """Return the slot's record as it is on disk."""
        return self.document().slots.get("digits", SlotRecord())

    def reaches(self, deployment: str, *states: str) -> None:
        """Wait until the journal shows a deployment in one of the states."""

        def there() -> bool:
            found = self.record().deployment
            return found is not None and found.id == deployment and found.state.value in states

        until(there, f"{states}; {self.record().deployment}; {self.tail()}", 30)

    def batches(self, stream: str) -> list[dict[str, Any]]:
        """Return every batch of a stream, in the order of arrival."""
        files = sorted((self.net / "batches").glob(f"*-{stream}"))
        return [opened(file.read_bytes()) for file in files]

    def tail(self) -> str:
        """Return the end of agentd's log."""
        return (self.folder / "log").read_text()[-3000:]

    def close(self) -> None:
        """End everything and remove the folder."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.gateway.close()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Witness:
    """Looks at the route all the time and remembers what it named."""

    def __init__(self, device: Device) -> None:
        self.seen: set[str] = set()
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.002):
            self.seen.add(self._device.gateway.routed("digits"))
