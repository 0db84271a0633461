"""That a model may be run in batches is proved before it serves, by real processes."""

from __future__ import annotations

import numpy as np
from msgspec import msgpack
from msgspec.structs import replace

from edgefleet_agent.ipc import control
from edgefleet_agent.toolbox import model_spec
from edgefleet_shared.package import Batching, Limits
from tests.batch_models import centred, greedy_rows, lookup, slow_rows
from tests.models import golden_bytes, linear, package
from tests.shared.test_package import MANIFEST, VARIANT


def prove(gateway, folder, model, rows=4, **more):
    """Prove a model that says that it may be run in batches; return the code, '' if it holds."""
    outcome = gateway.control.prove(package(folder, model, batching=Batching(rows), **more))
    return outcome.code if not outcome.ok else ""


def test_rows_that_depend_on_one_another_are_found_out(gateway, tmp_path):
    """Proving joins golden cases with a stranger, or strangers alone, and compares."""
    x = np.array([[1, 2, 3, 4]], np.float32)
    nought = golden_bytes([({"x": x}, {"y": x - x})])
    assert prove(gateway, tmp_path, centred(), golden=nought, cases=1) == "batch_mismatch"
    assert prove(gateway, tmp_path, centred()) == "batch_mismatch"
    many = np.arange(32, dtype=np.float32).reshape(8, 4)
    wide = golden_bytes([({"x": many}, {"y": many - many.mean(0)})])
    assert prove(gateway, tmp_path, centred(), golden=wide, cases=1) == "batch_mismatch"


def test_rows_that_are_independent_are_proved(gateway, tmp_path):
    """With golden vectors and without, also where only a few numbers mean anything."""
    cases = [
        ({"x": np.full((1, 4), value, np.float32)}, {"y": np.full((1, 2), 8 * value, np.float32)})
        for value in (1, 2, 3)
    ]
    golden = golden_bytes(cases)
    assert prove(gateway, tmp_path, linear(2.0), golden=golden, cases=3) == ""
    assert prove(gateway, tmp_path, linear(2.0), rows=2, golden=golden, cases=3) == ""
    assert prove(gateway, tmp_path, linear(2.0)) == ""
    assert prove(gateway, tmp_path, lookup()) == ""
    assert prove(gateway, tmp_path, slow_rows()) == ""


def test_a_batch_must_fit_into_the_package_s_memory(gateway, tmp_path):
    """Proving runs the largest batch, so that what serves is known to have room for it."""
    limits = Limits(memory_mb=200)
    assert prove(gateway, tmp_path, greedy_rows(8), rows=2, limits=limits) == ""
    assert prove(gateway, tmp_path, greedy_rows(8), rows=64, limits=limits) == "out_of_memory"


def test_what_a_manifest_says_reaches_the_worker():
    """Agentd hands the variant's batching on with the rest of its specification."""
    variant = replace(VARIANT, batching=Batching(8, 500))
    spec = model_spec(replace(MANIFEST, variants=[variant]), variant, "sha256:0", 1)
    assert msgpack.decode(msgpack.encode(spec), type=control.ModelSpec).batching == Batching(8, 500)
