"""Show that a device's environment holds the agent and shared, and nothing of the other rooms."""

from __future__ import annotations

import sys
from importlib.util import find_spec

PRESENT = ("edgefleet_agent", "edgefleet_shared", "onnxruntime", "paho")
ABSENT = (
    "edgefleet_cloud",
    "edgefleet_provisioning",
    "fastapi",
    "sqlalchemy",
    "sqlmodel",
    "alembic",
    "amqtt",
    "typer",
)

missing = [name for name in PRESENT if find_spec(name) is None]
foreign = [name for name in ABSENT if find_spec(name) is not None]
if missing or foreign:
    sys.exit(f"Missing on the device: {missing}. Not to be there: {foreign}.")
print(f"The agent alone: {', '.join(PRESENT)}; none of {', '.join(ABSENT)}.")
