"""What every adapter of the port `Runtime` does."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgefleet_agent.worker import compose, environment
from edgefleet_shared.errors import IncompatibleError
from tests.models import linear, package

os.environ |= environment.VARIABLES  # before the first import of a runtime in this process
CPU = {"CPUExecutionProvider": {}}
MODELS = {"onnxruntime": linear}
"""Runtime name to what makes bytes of a model x [n, 4] -> y [n, 2] = scale * sum(x)."""


@pytest.fixture(params=sorted(compose.RUNTIMES), autouse=True)
def name(request):
    """Each runtime that the table knows; one that cannot be tested fails here."""
    return request.param


@pytest.fixture
def opened(name, tmp_path):
    """Open the linear model by descriptor, with its path gone already."""

    def open_(scale=1.0, data=None, **options):
        one = package(tmp_path, data or MODELS[name](scale), **options)
        files = one.open()
        for path in one.paths:
            path.unlink()
        try:
            return compose.runtime(name).open(one.spec, files, CPU)
        finally:
            for fd in files:
                os.close(fd)

    return open_


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


def test_inputs_that_do_not_fit_are_a_value_error(opened):
    """Wrong shape, type or name is the caller's fault; the session goes on."""
    session = opened()
    for bad in (
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
        {"z": np.zeros((1, 4), np.float32)},
    ):
        with pytest.raises(ValueError, match=r"."):
            session.run(bad)
    assert session.run({"x": np.ones((1, 4), np.float32)})["y"][0, 0] == 4


def test_what_is_no_model_is_a_runtime_error(name, tmp_path):
    """Garbage and options that do not exist are refused with a reason."""
    for change in ({"graph_optimization_level": "never"}, {}):
        one = package(tmp_path, MODELS[name](1.0), **change)
        if not change:
            one.paths[0].write_bytes(b"garbage")
        files = one.open()
        with pytest.raises(RuntimeError, match=r"."):
            compose.runtime(name).open(one.spec, files, CPU)
        for fd in files:
            os.close(fd)


def test_a_missing_provider_is_a_runtime_error(name, tmp_path):
    """A provider that the library lacks is said, and never replaced in silence."""
    one = package(tmp_path, MODELS[name](1.0))
    files = one.open()
    with pytest.raises(RuntimeError, match="NoSuchProvider"):
        compose.runtime(name).open(one.spec, files, {"NoSuchProvider": {}})
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
