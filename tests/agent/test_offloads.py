"""GPUs and NPUs as agentd sees them: absent with a reason, proved by a model, admitted."""

from __future__ import annotations

import shutil
import subprocess

import msgspec
import pytest

from edgefleet_agent import compose, machine, nvml, proof
from edgefleet_agent.accelerators import gpu as offload
from edgefleet_agent.accelerators.cpu import cores
from edgefleet_agent.accelerators.gpu import Gpu, Npu
from edgefleet_agent.config import Accelerators, Delegate
from edgefleet_agent.nvml import Card
from edgefleet_agent.proof import Proof, ProofBook
from edgefleet_agent.providers import CPU, PROVIDERS
from edgefleet_agent.variants import why_unfit
from edgefleet_shared.errors import IncompatibleError, UnavailableError
from edgefleet_shared.identifiers import new_id
from edgefleet_shared.package import Limits, RuntimeNeed
from tests.agent.running import Agent
from tests.agent.world import World, a_variant, until
from tests.models import linear, package

CARD = Card("A GPU", "580.1", 8000, 6000)


def no_card() -> None:
    """There is no NVIDIA GPU."""


class Scripted:
    """Proves what it is told to, and counts."""

    def __init__(self, *usable: str) -> None:
        self.usable, self.asked = usable, []

    def __call__(self, kind, placement, facts) -> Proof:
        self.asked.append((kind, *placement))
        name = next(iter(placement))
        return Proof(name in self.usable, "" if name in self.usable else "the model crashed")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine with every driver loaded and every package installed; no model has run yet."""
    for name in ("dev/nvidiactl", "sys/class/drm/card0/device/uevent", "sys/class/accel/accel0/x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("PCI_ID=8086:1234\n")
    monkeypatch.setattr(offload, "version", lambda _: "1.0")
    return tmp_path


def test_on_a_machine_without_any_it_says_what_is_missing(tmp_path):
    """Each way has its reason, and no process is started to find out."""
    prover = Scripted()
    report = Gpu(prove=prover, root=tmp_path, read_card=no_card).probe()
    assert not report.usable
    assert "CUDAExecutionProvider: onnxruntime-gpu is not installed" in report.why_not
    assert "OpenVINOExecutionProvider: " in report.why_not
    assert not prover.asked
    assert "OpenVINOExecutionProvider: " in Npu(prove=prover, root=tmp_path).probe().why_not


def test_a_package_without_a_driver_is_no_accelerator(tmp_path, monkeypatch):
    """What pip has installed proves nothing; the reason names the device file that is missing."""
    monkeypatch.setattr(offload, "version", lambda _: "1.0")
    report = Gpu(prove=Scripted(), root=tmp_path, read_card=no_card).probe()
    assert "no driver is loaded: there is no /dev/nvidiactl or" in report.why_not
    assert "/sys/class/drm/card*" in report.why_not


def test_usable_is_what_a_model_has_run_on(root):
    """Of four ways that look right, the ones that proved themselves count; the rest say why not."""
    prover = Scripted("CUDAExecutionProvider", "WebGpuExecutionProvider")
    report = Gpu(prove=prover, root=root, read_card=lambda: CARD).probe()
    assert report.usable
    assert report.providers == ("CUDAExecutionProvider", "WebGpuExecutionProvider")
    assert report.detail["why_not"]["TensorrtExecutionProvider"] == "the model crashed"
    assert (report.name, report.driver, report.memory_mb) == ("A GPU", "580.1", 8000)
    assert len(prover.asked) == len([p for p in PROVIDERS if p.kind == "gpu"])


def test_it_can_be_switched_off(root):
    """`accelerators.disabled` ends it before anything is looked at."""
    prover = Scripted("CUDAExecutionProvider")
    gpu = Gpu(Accelerators(disabled=("gpu",)), prover, root, no_card)
    assert "disabled in agent.toml" in gpu.probe().why_not
    assert not prover.asked


def test_a_package_s_preference_counts_among_what_is_usable(root, tmp_path):
    """Its order, less what is not usable here; without one of them, the first that is."""
    prover = Scripted("CUDAExecutionProvider", "TensorrtExecutionProvider")
    gpu = Gpu(Accelerators(memory_limit_mb=100), prover, root, lambda: CARD)
    gpu.probe()
    spec = package(tmp_path, linear(), accelerator="gpu").spec

    def asked(*names: str, **changes):
        return gpu.providers(msgspec.structs.replace(spec, providers=list(names), **changes))

    assert list(asked("TensorrtExecutionProvider", "CUDAExecutionProvider")) == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", CPU,
    ]  # fmt: skip
    assert list(asked("OpenVINOExecutionProvider")) == ["CUDAExecutionProvider", CPU]
    assert list(asked(cpu_fallback=False)) == ["CUDAExecutionProvider"]
    settings = asked()["CUDAExecutionProvider"]
    assert settings["gpu_mem_limit"] == str(100 * 2**20)
    assert settings["arena_extend_strategy"] == "kSameAsRequested"
    with pytest.raises(IncompatibleError, match="No GPU that is usable here"):
        Gpu().providers(spec)
    placed = msgspec.structs.replace(spec, placement={"X": {"a": "b"}})
    assert Gpu().providers(placed) == {"X": {"a": "b"}}


def test_admission_by_the_card_s_free_memory(root, tmp_path):
    """What the package says it takes must be free above the reserve; unknown is not refused."""
    spec = package(tmp_path, linear(), accelerator="gpu", limits=Limits(device_memory_mb=5800)).spec
    gpu = Gpu(Accelerators(memory_reserve_mb=256), Scripted(), root, lambda: CARD)
    assert gpu.free_mb() == 5744
    with pytest.raises(UnavailableError) as refused:
        gpu.reserve(spec)
    assert refused.value.code == "device_memory"
    assert "5744 MB are free" in str(refused.value)
    fits = msgspec.structs.replace(spec, limits=Limits(device_memory_mb=5744))
    slot = gpu.reserve(fits)
    assert gpu.state(slot) == "operating"
    gpu.release(slot)
    assert gpu.state(slot) == "free"
    blind = Gpu(Accelerators(), Scripted(), root, no_card)
    assert blind.free_mb() == -1
    blind.reserve(spec)


def for_gpu(manifest):
    """Return the manifest with its only variant for a GPU, of which it takes 100 MB."""
    variant = manifest.variants[0]
    limits = msgspec.structs.replace(variant.limits, device_memory_mb=100)
    changed = msgspec.structs.replace(variant, id="gpu", accelerator="gpu", limits=limits)
    return msgspec.structs.replace(manifest, variants=[changed])


def test_agentd_places_a_model_and_admits_it_by_the_card(root, monkeypatch):
    """With 44 MB free above the reserve nothing is loaded; with more it is, on the proved way."""
    card = [CARD._replace(free_mb=300)]
    gpu = Gpu(Accelerators(), Scripted("CUDAExecutionProvider"), root, lambda: card[0])
    monkeypatch.setattr(compose, "offloads_of", lambda _: {"gpu": gpu})
    world = World()
    agent = Agent(world).start()
    try:
        agent.assign(slot := world.publish("1.0.0", change=for_gpu))
        report = agent.reaches("failed")
        assert "It will take 100 MB; 44 MB are available" in report["detail"]
        assert not agent.gateway.loaded()
        card[0] = CARD
        agent.gateway.share = 60
        agent.assign(msgspec.structs.replace(slot, deployment=new_id()))
        until(lambda: agent.gateway.routed("digits") == slot.manifest, "service")
        assert agent.gateway.placed[-1] == ["CUDAExecutionProvider", CPU]
        assert "40 % of the model's nodes" in agent.event("cpu_fallback")["message"]
    finally:
        agent.close()
        world.close()


def test_delegates_come_from_the_configuration_alone(tmp_path):
    """A delegate whose library is there makes its kind usable for LiteRT, and for nothing else."""
    library = tmp_path / "libdelegate.so"
    one = Delegate("edgetpu", "npu", str(library), {"device": "usb"})
    npu = Npu(Accelerators(delegates=(one,)), Scripted(), tmp_path)
    assert f"edgetpu: {library} is not there" in npu.probe().why_not
    library.write_bytes(b"")
    report = npu.probe()
    assert report.providers == ("edgetpu",)
    spec = package(tmp_path, linear(), accelerator="npu").spec
    tflite = msgspec.structs.replace(spec, runtime="litert", providers=["edgetpu"])
    assert npu.providers(tflite) == {"edgetpu": {"library": str(library), "device": "usb"}}
    cpu = msgspec.structs.replace(report, kind="cpu", memory_mb=9999, providers=())
    here = machine.describe("generic-x", [cpu, report])
    onnx = a_variant("sha256:" + "1" * 64, 1, accelerator="npu")
    assert "no onnxruntime model has run on the npu here" in why_unfit(onnx, here)
    if "litert" in here.runtimes:
        assert not why_unfit(msgspec.structs.replace(onnx, runtime=RuntimeNeed("litert")), here)


def test_a_proof_is_remembered_while_nothing_changes(tmp_path, monkeypatch):
    """Once a machine: a restart asks the file; other facts, or a damaged file, ask the hardware."""
    asked = []

    def prove(kind, placement, limit_s):
        asked.append(kind)
        return Proof(True)

    monkeypatch.setattr(proof, "prove", prove)
    path = tmp_path / "accelerators.json"
    book = ProofBook(path, 5)
    for _ in range(2):
        assert book("gpu", {"X": {}}, "driver 1").usable
    assert ProofBook(path, 5)("gpu", {"X": {}}, "driver 1").usable
    assert len(asked) == 1
    assert ProofBook(path, 5)("gpu", {"X": {}}, "driver 2").usable
    assert len(asked) == 2
    path.write_bytes(b"{")
    assert ProofBook(path, 5)("gpu", {"X": {}}, "driver 2").usable
    assert len(asked) == 3


def test_what_a_busy_moment_decided_is_asked_again(tmp_path, monkeypatch):
    """A time-out or a crash is no property of the machine."""
    monkeypatch.setattr(proof, "prove", lambda *_: Proof(False, "slow", lasting=False))
    ProofBook(tmp_path / "a.json", 5)("gpu", {"X": {}}, "")
    assert not (tmp_path / "a.json").exists()


def test_a_real_worker_proves_by_a_real_model():
    """The provider of the CPU, asked as if it were a GPU's: loads, answers right, passes."""
    assert proof.prove("gpu", {CPU: {}}, 60) == Proof(True)


@pytest.mark.parametrize(
    "provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider"]
)
def test_what_cannot_run_here_is_unusable_with_its_reason(provider):
    """No GPU, no driver or no package: the same question that is asked of real hardware."""
    found = proof.prove("gpu", {provider: {}}, 60)
    if found.usable:
        pytest.skip(f"{provider} works on this machine")
    assert provider in found.why_not or "lib" in found.why_not


def test_a_proof_that_hangs_is_ended():
    """A driver may hang for ever: the limit of time holds, and no process stays."""
    found = proof.prove("gpu", {CPU: {}}, 0.001)
    assert not found.usable
    assert "no answer within" in found.why_not
    assert not found.lasting


NVML = r"""
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static int number(const char *name) { char *text = getenv(name); return text ? atoi(text) : 0; }
int nvmlInit_v2(void) { return number("FAKE_NVML_INIT"); }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  *device = (void *)&NAME; return index ? 6 : 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
  if (device != (void *)&NAME) return 2;
  found->total = 8000ULL << 20; found->free = 6000ULL << 20; found->used = 2000ULL << 20;
  return number("FAKE_NVML_MEMORY");
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
  strncpy(name, NAME, length); return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
  strncpy(version, "580.1", length); return 0;
}
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc not on PATH: builds a stand-in of NVML")
def test_the_card_is_read_by_nvidia_s_own_calls(tmp_path, monkeypatch):
    """Against a stand-in library with NVML's symbols and structures, and where it fails."""
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text('static const char NAME[] = "A GPU";\n' + NVML)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert nvml.read(0, str(library)) == CARD
    assert nvml.read(1, str(library)) is None
    monkeypatch.setenv("FAKE_NVML_MEMORY", "3")
    assert nvml.read(0, str(library)) is None
    monkeypatch.setenv("FAKE_NVML_INIT", "9")
    assert nvml.read(0, str(library)) is None
    assert nvml.read(0, str(tmp_path / "absent.so")) is None
    assert nvml.read(0, "libc.so.6") is None


def test_cores_are_those_of_cpuset_and_quota(tmp_path):
    """Half a core is one thread; a parent's quota holds for its children."""
    here = cores(tmp_path, tmp_path / "absent")
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    (tmp_path / "fs/a/b").mkdir(parents=True)
    assert cores(tmp_path / "fs", own) == here
    (tmp_path / "fs/a/cpu.max").write_text("100000 100000\n")
    (tmp_path / "fs/a/b/cpu.max").write_text("max 100000\n")
    assert cores(tmp_path / "fs", own) == 1
    (tmp_path / "fs/a/b/cpu.max").write_text("50000 100000\n")
    assert cores(tmp_path / "fs", own) == 1
