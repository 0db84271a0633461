"""The selftest's row of memory: what a model takes and gives back, whatever ends late."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import pytest
from msgspec.structs import replace

from edgefleet_agent import compose, config
from edgefleet_agent.selftest import serving
from edgefleet_agent.selftest.bench import Bench, run_folder
from tests.agent.world import until


@pytest.fixture
def pair(monkeypatch):
    """A model that serves from a gateway of the selftest's own; no connection is lent to it yet."""
    monkeypatch.setattr(serving, "ASKED", 2)
    folder = run_folder()
    made = config.Config(state_dir=str(folder), run_dir=str(folder))
    own = replace(made, inference=replace(made.inference, tcp=""))
    command, environ = compose.command_of_gateway(own), compose.environ_of_gateway(own, os.environ)
    with Bench(command, environ, folder) as bench:
        made = serving._Pair(bench, folder, "onnxruntime", "cpu", lambda spec: spec)
        assert not made._serve({})
        yield made
    shutil.rmtree(folder)


def test_a_worker_that_is_slow_to_end_is_not_counted_as_there_before(pair):
    """It ends between the two measurements, unless they wait for it: no figure is negative."""
    (worker,) = pair._workers
    os.kill(worker, signal.SIGSTOP)
    load = pair._load

    def load_once_it_has_ended(one):
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        until(lambda: worker not in pair._bench.processes(), "the end of the old worker")
        return load(one)

    pair._load = load_once_it_has_ended
    figures: dict[str, int] = {}
    assert not pair._memory(figures), figures
    assert figures["loaded_kb"] > 1024, "what was there before held the worker that was to go"
    assert figures["left_kb"] > -1024


def test_a_worker_that_does_not_end_is_told(pair, monkeypatch):
    """Nothing is measured then: the row fails with the reason."""
    monkeypatch.setattr(serving, "SETTLE_S", 0.2)
    with pytest.raises(serving.UnavailableError, match="has not ended"):
        pair._settled()
