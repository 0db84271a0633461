"""`python -m tests.adversarial.spied_agentd CONFIG LOG`: the real agentd; LOG names what it opens.

One line for every blob of the store that is opened, whoever asks in this process: workers get their
files from here as open descriptors and have no other way to any.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from edgefleet_agent.cli import main as agent

BLOBS = "/store/blobs/sha256/"


def main() -> int:
    """Run agentd until it ends."""
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and BLOBS in str(given[0]):
            os.write(log, str(given[0]).rsplit("/", 1)[-1].encode() + b"\n")

    sys.addaudithook(hook)
    return agent(["run", "--config", sys.argv[1]])


if __name__ == "__main__":
    sys.exit(main())
