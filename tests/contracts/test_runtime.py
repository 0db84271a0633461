"""What every adapter of the port `Runtime` does."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgefleet_agent.worker import compose, environment
from edgefleet_shared.errors import IncompatibleError
from tests import models, tflite_models
from tests.models import package

os.environ |= environment.VARIABLES  # before the first import of a runtime in this process
CPU = {"CPUExecutionProvider": {}}
MODELS = {"onnxruntime": models, "litert": tflite_models}
"""Runtime name to who makes its models: `linear(scale)` and `mlp()` mean the same everywhere."""

ELSEWHERE: dict[str, str] = {
    "registers": "agent/fpga/test_registers.py",
    "container": "agent/test_containers.py",
}
"""Runtimes that have no model file of their own: name to the suite that holds them to the port."""

BAD_OPTIONS = {"graph_optimization_level": "never", "num_threads": 0}


@pytest.fixture(params=sorted(MODELS), autouse=True)
def name(request):
    """Each runtime that the table knows; one that cannot be tested fails here."""
    try:
        compose.runtime(request.param)
    except IncompatibleError as error:
        if os.environ.get("EDGEFLEET_TESTED_RUNTIME", request.param) == request.param:
            raise
        pytest.skip(f"this environment is for another runtime: {error}")
    return request.param


@pytest.fixture
def opened(name, tmp_path):
    """Open a model by descriptor, with its path gone already."""

    def open_(scale=1.0, data=None, **options):
        one = package(tmp_path, data or MODELS[name].linear(scale), **options)
        files = one.open()
        for path in one.paths:
            path.unlink()
        try:
            return compose.runtime(name).open(one.spec, files, CPU)
        finally:
            for fd in files:
                os.close(fd)

    return open_


def test_every_runtime_of_the_table_is_here():
    """A new line in the table needs its models here, or a suite of its own."""
    assert compose.RUNTIMES.keys() == MODELS.keys() | ELSEWHERE.keys()
    assert all((Path(__file__).parents[1] / suite).is_file() for suite in ELSEWHERE.values())


def test_it_says_who_it_is(name):
    """Name and version are told."""
    runtime = compose.runtime(name)
    assert runtime.name == name
    assert runtime.version()[0].isdigit()


def test_it_runs_what_the_descriptors_hold(opened):
    """The model comes from the descriptors alone, and two sessions do not disturb each other."""
    one, two = opened(1.0), opened(2.0)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(one.run({"x": x})["y"], [[6, 6], [22, 22]])
    np.testing.assert_allclose(two.run({"x": x})["y"], [[12, 12], [44, 44]])
    np.testing.assert_allclose(one.run({"x": x[:1]})["y"], [[6, 6]])


def test_every_output_is_given_and_is_right(name, opened):
    """Two outputs of different types, for batches of any size, as numpy computes them."""
    session = opened(data=MODELS[name].mlp())
    w = tflite_models.weights(0)
    for rows in (1, 7, 3, 1):
        x = np.random.default_rng(rows).normal(size=(rows, 64)).astype(np.float32)
        scores = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
        found = session.run({"x": x})
        assert sorted(found) == ["label", "scores"]
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found["label"], scores.argmax(1))
        assert found["label"].dtype == np.int64


def test_an_answer_stays_when_the_next_one_is_computed(opened):
    """What a run returned is the caller's: no later run writes into it."""
    session = opened()
    first = session.run({"x": np.ones((1, 4), np.float32)})["y"]
    session.run({"x": np.full((1, 4), 9, np.float32)})
    assert first[0, 0] == 4


def test_threads_share_a_session(opened):
    """Runs of different sizes from several threads at once each get their own answer."""
    session = opened(2.0)

    def ask(number: int) -> bool:
        x = np.full((1 + number % 5, 4), number, np.float32)
        y = session.run({"x": x})["y"]
        return y.shape == (len(x), 2) and bool((y == 8 * number).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


def test_inputs_that_do_not_fit_are_a_value_error(opened):
    """Wrong shape, rank, type or name is the caller's fault; the session goes on."""
    session = opened()
    for bad in (
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros((1, 1, 4), np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
        {"z": np.zeros((1, 4), np.float32)},
        {},
    ):
        with pytest.raises(ValueError, match=r"."):
            session.run(bad)
        assert session.run({"x": np.ones((1, 4), np.float32)})["y"][0, 0] == 4


def test_what_is_no_model_is_a_runtime_error(name, tmp_path):
    """Garbage and options that do not exist are refused with a reason."""
    for change in (BAD_OPTIONS, {}):
        one = package(tmp_path, MODELS[name].linear(1.0), **change)
        if not change:
            one.paths[0].write_bytes(b"garbage")
        files = one.open()
        with pytest.raises(RuntimeError, match=r"."):
            compose.runtime(name).open(one.spec, files, CPU)
        for fd in files:
            os.close(fd)


def test_a_missing_provider_is_a_runtime_error(name, tmp_path):
    """A provider that the library lacks is said, and never replaced in silence."""
    one = package(tmp_path, MODELS[name].linear(1.0))
    files = one.open()
    with pytest.raises(RuntimeError, match="NoSuchProvider"):
        compose.runtime(name).open(one.spec, files, {"NoSuchProvider": {}})
    for fd in files:
        os.close(fd)


def test_a_package_of_another_format_is_a_runtime_error(name, tmp_path):
    """A runtime whose kind of model is not among the files says so."""
    other = next(maker for runtime, maker in MODELS.items() if runtime != name)
    one = package(tmp_path, other.linear(1.0), runtime=name)
    files = one.open()
    with pytest.raises(RuntimeError, match="no file of role"):
        compose.runtime(name).open(one.spec, files, CPU)
    for fd in files:
        os.close(fd)


def test_unknown_names_are_refused():
    """A runtime or accelerator that the tables lack has a code of its own."""
    with pytest.raises(IncompatibleError) as caught:
        compose.runtime("abacus")
    assert caught.value.code == "unsupported_runtime"
    with pytest.raises(IncompatibleError) as caught:
        compose.accelerator("abacus")
    assert caught.value.code == "unsupported_accelerator"


def test_importing_it_starts_nothing(name, tmp_path):
    """In a process of its own: no thread, no file at home, no socket; it can be forked safely."""
    code = (
        "import os, sys; from edgefleet_agent.worker import compose; compose.runtime(sys.argv[1]);"
        "links = [os.readlink(f'/proc/self/fd/{n}') for n in (3, 4, 5, 6, 7)"
        " if os.path.exists(f'/proc/self/fd/{n}')];"
        "print(len(os.listdir('/proc/self/task')), [one for one in links if 'socket' in one])"
    )
    environ = {**os.environ, **environment.VARIABLES, "HOME": str(tmp_path),
               "XDG_CACHE_HOME": str(tmp_path)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, name], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1 []"
    assert list(Path(tmp_path).rglob("*")) == []
