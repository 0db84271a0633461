"""What every adapter of the port `Accelerator` does."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from edgefleet_agent.worker import compose
from tests.models import linear, package


@pytest.fixture(params=sorted(compose.ACCELERATORS))
def accelerator(request):
    """Each accelerator that the table knows."""
    return compose.accelerator(request.param)


def test_the_report_is_honest(accelerator):
    """Probing never raises; what is not usable says why, what is usable has a name."""
    report = accelerator.probe()
    assert report.kind == accelerator.kind
    assert report.usable or report.why_not.endswith(".")
    assert report.name or not report.usable
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report


def test_only_its_own_kind_is_compatible(accelerator, tmp_path):
    """A model for this kind fits; one for another is refused in a sentence."""
    mine = package(tmp_path, linear(), accelerator=accelerator.kind).spec
    mine = msgspec.structs.replace(mine, placement={"CPUExecutionProvider": {}})  # as agentd would
    other = package(tmp_path, linear(), accelerator="other").spec
    assert not accelerator.compatible(mine)
    assert accelerator.compatible(other).endswith(".")
    assert accelerator.providers(mine)


def test_a_slot_s_life(accelerator, tmp_path):
    """Reserved, programmed, operating, released, free."""
    one = package(tmp_path, linear(), accelerator=accelerator.kind).spec
    slot = accelerator.reserve(one)
    accelerator.program(slot, one, [])
    assert accelerator.state(slot) == "operating"
    accelerator.release(slot)
    assert accelerator.state(slot) == "free"


@pytest.mark.parametrize("kind", sorted(compose.ACCELERATORS))
def test_it_needs_no_array_library(kind):
    """Accelerators are probed by agentd, so their modules import neither numpy nor a runtime."""
    module = compose.ACCELERATORS[kind].partition(":")[0]
    code = f"import sys, {module}; sys.exit(bool({{'numpy', 'onnxruntime'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
