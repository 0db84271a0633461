"""`python -m tests.faults.agentd CONFIG FOLDER`: the real agentd over a folder transport.

`CLOCK_SHIFT_S` in its environment makes its clock wrong by so many seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

from edgefleet_agent import compose, config
from tests.fakes.folder_transport import FolderTransport


def main() -> None:
    """Run until SIGTERM, or until killed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("tuf").setLevel(logging.WARNING)
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
