"""`python -m tests.faults.agentd CONFIG FOLDER`: the real agentd over a folder transport.

`CLOCK_SHIFT_S` in its environment makes its clock wrong by so many seconds. `KILL_AT=STATE:before`
or `:after` kills it (SIGKILL) just before or just after the journal first says that state.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

from edgefleet_agent import compose, config
from edgefleet_agent.journal import Journal, SlotRecord
from tests.fakes.folder_transport import FolderTransport


def die_at(state: str, side: str) -> None:
    """Have every journal of this process die at the write of a state."""
    write = Journal.write

    def fatal(journal: Journal, name: str, record: SlotRecord) -> None:
        before, after = journal.slot(name).deployment, record.deployment
        moved = after is not None and after.state.value == state
        moved = moved and (before is None or (before.id, before.state) != (after.id, after.state))
        if moved and side == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(journal, name, record)
        if moved:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.write = fatal  # type: ignore[method-assign]


def main() -> None:
    """Run until SIGTERM, or until killed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tuf").setLevel(logging.WARNING)
    if at := os.environ.get("KILL_AT"):
        die_at(*at.split(":"))
    settings = config.load(Path(sys.argv[1]))
    with compose.lock(settings.state):
        daemon = compose.build(
            settings,
            transport=FolderTransport(Path(sys.argv[2])),
            gateway_command=["/bin/false"],
            clock=lambda: time.time() + float(os.environ.get("CLOCK_SHIFT_S", "0")),
        )
        signal.signal(signal.SIGTERM, lambda *_: daemon.end())
        signal.signal(signal.SIGUSR2, lambda *_: daemon.look_into_inbox())
        daemon.run()


if __name__ == "__main__":
    main()
