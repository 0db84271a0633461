"""What the processes that stay must not have imported: each stays small on a small device."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

RUNTIMES = {"numpy", "onnxruntime", "ai_edge_litert", "PIL", "docker", "grpc", "google.protobuf"}
AGENTD = {
    *RUNTIMES, "asyncio", "httptools", "multiprocessing", "requests", "uvloop",
    "edgefleet_agent.client.sync", "edgefleet_agent.enrollment", "edgefleet_agent.importing",
    "edgefleet_agent.inspection.collect", "edgefleet_agent.inspection.infer",
    "edgefleet_agent.inspection.models", "edgefleet_agent.inspection.verify",
    "edgefleet_agent.selftest.command", "edgefleet_agent.worker.sandbox",
}  # fmt: skip
GATEWAY = {
    *RUNTIMES, "asn1crypto", "cryptography", "email", "http.client", "importlib.metadata",
    "multiprocessing", "paho.mqtt", "pkcs11", "securesystemslib", "sqlite3", "tomllib", "tuf",
    "urllib3", "urllib.request", "edgefleet_agent.config", "edgefleet_shared.package",
}  # fmt: skip
STARTS = {
    "agentd": ("edgefleet_agent.cli, edgefleet_agent.compose", AGENTD),
    "gateway": ("edgefleet_agent.gateway.__main__, uvloop", GATEWAY),
}


@pytest.mark.parametrize("name", STARTS)
def test_what_a_start_leaves_for_later(name):
    """A start imports nothing of what is there and is needed seldom, or in another process."""
    modules, heavy = STARTS[name]
    # One checkout has azure-identity for other rooms, and securesystemslib takes up what is there.
    alone = "import json, sys; sys.modules['azure.identity'] = None"
    code = f"{alone}; import {modules}; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert heavy & set(json.loads(done.stdout)) == set()


@pytest.mark.parametrize("module", sorted(AGENTD | GATEWAY))
def test_what_is_left_for_later_is_there(module):
    """What a start must not import can be imported here, so the test above can fail."""
    assert find_spec(module) is not None
