"""`python -m edgefleet_agent` and the command `edgefleet-agent`."""

from __future__ import annotations

import sys

from edgefleet_agent.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
