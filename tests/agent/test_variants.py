"""Which variants fit a machine, and which of those that were measured is the best."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent import machine, variants
from edgefleet_agent.choosing import ChoiceBook, choose, read_choices
from edgefleet_agent.ipc.control import Outcome
from edgefleet_agent.ports import DeviceReport
from edgefleet_agent.variants import Machine, Measured, rank, reason, why_unfit
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import Golden, Limits, Manifest, RuntimeNeed
from tests.agent.world import a_variant

HERE = Machine(
    hardware="rpi5",
    accelerators={"cpu": "", "gpu": "No NVIDIA driver is loaded.", "npu": ""},
    runtimes={"onnxruntime": "1.31.1", "container": ""},
    memory_mb=4000,
    device_memory_mb={"npu": 512},
)
DIGEST = "sha256:" + "1" * 64
BASE = msgspec.structs.replace(a_variant(DIGEST, 10), golden=Golden("golden.safetensors", 1))


def variant(name: str = "a", **fields):
    """Return a variant that fits `HERE`, changed."""
    return msgspec.structs.replace(BASE, id=name, **fields)


def manifest(*found) -> Manifest:
    """Return a manifest of these variants."""
    return Manifest(1, "digits", "1.0.0", 1, 0, "2026-01-01T00:00:00Z", list(found))


def need(**fields) -> RuntimeNeed:
    """Return a need of onnxruntime."""
    return RuntimeNeed("onnxruntime", **fields)


UNFIT = {
    "fits": (variant(), ""),
    "gpu is not usable": (variant(accelerator="gpu"), "No NVIDIA driver"),
    "nobody knows it": (variant(accelerator="fpga"), "no accelerator fpga"),
    "runtime missing": (variant(runtime=RuntimeNeed("litert")), "litert is not installed"),
    "older runtime needed": (variant(runtime=need(min_version="1.9")), ""),
    "newer runtime needed": (variant(runtime=need(min_version="1.32.0")), "here is 1.31.1"),
    "a version nobody tells": (variant(runtime=RuntimeNeed("container", "9")), ""),
    "opset it has": (variant(runtime=need(opsets={"": 17})), ""),
    "opset too new": (variant(runtime=need(opsets={"": 99})), "ai.onnx are newer"),
    "too much memory": (variant(limits=Limits(memory_mb=4001)), "may take 4001 MB"),
    "memory that is there": (variant(limits=Limits(memory_mb=4000)), ""),
    "too much of the device's": (
        variant(accelerator="npu", limits=Limits(device_memory_mb=513)), "513 MB of the npu"),
    "the device's is enough": (
        variant(accelerator="npu", limits=Limits(device_memory_mb=512)), ""),
}  # fmt: skip


@pytest.mark.parametrize(("one", "why"), UNFIT.values(), ids=UNFIT)
def test_why_a_variant_is_no_candidate(one, why):
    """Accelerator, runtime, its version, opsets and memory are looked at before anything is run."""
    assert (why in why_unfit(one, HERE)) if why else not why_unfit(one, HERE)


def test_what_is_refused_says_why():
    """The hint of a refusal names every variant with its reason."""
    two = manifest(variant("a", accelerator="gpu"), variant("b", runtime=RuntimeNeed("litert")))
    with pytest.raises(InvalidInputError) as refused:
        variants.candidates(two, HERE)
    assert refused.value.code == "no_compatible_variant"
    assert "a: gpu is not usable" in refused.value.hint
    assert "b: the runtime litert" in refused.value.hint
    found, why = variants.candidates(
        manifest(variant("a"), variant("b", hardware=["rpi5"]), variant("c", hardware=["nano"])),
        HERE,
    )
    assert [v.id for v in found] == ["b"]
    assert set(why) == {"a", "c"}


def one(name: str, us: int, kb: int = 1000, pct: int = 100, code: str = "") -> Measured:
    """Return what a measuring found."""
    return Measured(name, "gpu", code, "", us, kb, 1, pct)


RANKS = {
    "the fastest": ([one("a", 900), one("b", 300), one("c", 600)], "b c a"),
    "what failed is out": ([one("a", 100, code="golden_mismatch"), one("b", 300)], "b"),
    "nothing passed": ([one("a", 1, code="crashed")], ""),
    "a tenth is noise: less memory": ([one("a", 1000, 2000), one("b", 1090, 1000)], "b a"),
    "a tenth and little memory: the manifest's order": (
        [one("a", 1090, 1040), one("b", 1000, 1000)], "a b"),
    "more than a tenth decides": ([one("a", 1000, 9000), one("b", 1101, 10)], "a b"),
    "on the CPU in truth": ([one("a", 100, pct=49), one("b", 900)], "b a"),
    "half is its word kept": ([one("a", 100, pct=50), one("b", 900)], "a b"),
    "not known is not a lie": ([one("a", 100, pct=-1), one("b", 900)], "a b"),
    "all on the CPU: the fastest": ([one("a", 900, pct=0), one("b", 100, pct=0)], "b a"),
}  # fmt: skip


@pytest.mark.parametrize(("measured", "order"), RANKS.values(), ids=RANKS)
def test_the_order_of_what_was_measured(measured, order):
    """Limits, then accelerator truth, then time, then memory, then the manifest's order."""
    assert [m.variant for m in rank(measured)] == order.split()


MEASURED = st.builds(
    Measured,
    st.uuids().map(str),
    st.just("gpu"),
    st.sampled_from(["", "", "crashed"]),
    st.just(""),
    st.integers(1, 10_000),
    st.integers(1, 10_000),
    st.just(1),
    st.integers(-1, 100),
)


@given(st.lists(MEASURED, max_size=6))
def test_every_order_is_whole_and_defensible(measured):
    """All that passed are in it, once; the first is a tenth slower than no honest other."""
    order = rank(measured)
    assert sorted(m.variant for m in order) == sorted(m.variant for m in measured if not m.code)
    honest = [m for m in order if m.accelerated_pct < 0 or m.accelerated_pct >= 50] or order
    if order:
        assert order[0] in honest
        assert order[0].median_us <= 1.10 * min(m.median_us for m in honest)


def test_the_reason_has_every_number():
    """One line names the winner, its time, memory and share, and what became of the others."""
    measured = [one("gpu", 2100, 131072), one("cpu", 8300, 61440), one("int8", 1, code="crashed")]
    text = reason(rank(measured), measured)
    assert text.startswith("gpu (2.1 ms, 128 MB, 100 % on the gpu) is best of 3: ")
    assert "cpu (8.3 ms, 60 MB" in text
    assert "int8 failed (crashed)" in text
    many = [one(f"variant-{n}", 1000 + n) for n in range(40)]
    assert len(reason(rank(many), many)) <= 300


class Prover:
    """Answers with the median that is scripted for a variant, and counts."""

    def __init__(self, **medians: int) -> None:
        self.medians, self.asked = medians, []

    def __call__(self, found) -> Outcome:
        self.asked.append(found.id)
        us = self.medians[found.id]
        if us < 0:
            return Outcome(1, ok=False, code="load_timeout", message="slow")
        return Outcome(1, ok=True, median_us=us, memory_kb=1000, accelerated_pct=100)


def test_a_choice_is_remembered_for_this_machine_alone(tmp_path):
    """The same package on the same machine is not measured again; on another it is."""
    path, pair = tmp_path / "variants.json", [variant("a"), variant("b")]
    prover = Prover(a=900, b=300)
    first = choose(DIGEST, pair, {"c": "no."}, ChoiceBook(path, "this"), prover)
    assert first.order == ["b", "a"]
    assert choose(DIGEST, pair, {}, ChoiceBook(path, "this"), prover) == first
    assert prover.asked == ["a", "b"]
    assert read_choices(path) == [first]
    assert ChoiceBook(path, "another").find(DIGEST) is None
    moved = ChoiceBook(path, "another")
    assert choose(DIGEST, pair, {}, moved, Prover(a=100, b=300)).order == ["a", "b"]
    assert ChoiceBook(path, "this").find(DIGEST) is None


def test_another_set_of_candidates_is_measured_anew(tmp_path):
    """A runtime that a container variant needs has come: what was chosen without it is void."""
    book = ChoiceBook(tmp_path / "variants.json", "this")
    choose(DIGEST, [variant("a"), variant("b")], {}, book, Prover(a=900, b=300))
    three = [variant("a"), variant("b"), variant("c")]
    assert choose(DIGEST, three, {}, book, Prover(a=900, b=300, c=10)).order[0] == "c"


def test_one_candidate_is_not_measured(tmp_path):
    """There is nothing to compare; its proof comes when it is loaded."""
    prover = Prover()
    found = choose(DIGEST, [variant("a")], {}, ChoiceBook(tmp_path / "v.json", "this"), prover)
    assert (found.order, prover.asked) == (["a"], [])
    assert not (tmp_path / "v.json").exists()


def test_what_a_busy_machine_decided_is_not_remembered(tmp_path):
    """A time-out may be another model's fault: next time it is measured again."""
    book = ChoiceBook(tmp_path / "variants.json", "this")
    pair = [variant("a"), variant("b")]
    assert choose(DIGEST, pair, {}, book, Prover(a=900, b=-1)).order == ["a"]
    assert book.find(DIGEST) is None
    assert choose(DIGEST, pair, {}, book, Prover(a=900, b=300)).order == ["b", "a"]


@pytest.mark.parametrize("data", [b"", b"{", b'{"fingerprint":3}', b"\x00" * 5000])
def test_a_damaged_book_is_begun_anew(tmp_path, data):
    """It is a derived cache: whatever cannot be read is measured again, and never fatal."""
    path = tmp_path / "variants.json"
    path.write_bytes(data)
    book = ChoiceBook(path, "this")
    assert book.find(DIGEST) is None
    choose(DIGEST, [variant("a"), variant("b")], {}, book, Prover(a=900, b=300))
    assert ChoiceBook(path, "this").find(DIGEST).order == ["b", "a"]


def test_the_book_does_not_grow_for_ever(tmp_path):
    """The newest 64 packages are kept."""
    book = ChoiceBook(tmp_path / "variants.json", "this")
    for n in range(70):
        choose(f"sha256:{n:064x}", [variant("a"), variant("b")], {}, book, Prover(a=9, b=3))
    kept = read_choices(tmp_path / "variants.json")
    assert len(kept) == 64
    assert kept[-1].digest.endswith(f"{69:x}")


CPU = DeviceReport("Some CPU", "cpu", usable=True, memory_mb=1000)
GPU = DeviceReport("A GPU", "gpu", usable=True, driver="580.1", memory_mb=8000, providers=("X",))


def test_the_fingerprint_changes_with_what_measuring_depends_on(tmp_path):
    """Processor flags, driver, accelerator, usability and runtime versions each change it."""
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Some CPU\nflags\t: sse avx2\ncpu MHz\t: 2000.1\n")
    software = {"onnxruntime": "1.31.1"}
    base = machine.fingerprint([CPU, GPU], software, info)
    driver = msgspec.structs.replace(GPU, driver="590.0")
    broken = msgspec.structs.replace(GPU, usable=False)
    found = {
        base,
        machine.fingerprint([CPU, driver], software, info),
        machine.fingerprint([CPU, broken], software, info),
        machine.fingerprint([CPU], software, info),
        machine.fingerprint([CPU, GPU], {"onnxruntime": "1.32.0"}, info),
    }
    info.write_text("model name\t: Some CPU\nflags\t: sse avx2 avx512f\ncpu MHz\t: 2000.1\n")
    found.add(machine.fingerprint([CPU, GPU], software, info))
    assert len(found) == 6
    info.write_text("model name\t: Some CPU\nflags\t: sse avx2\ncpu MHz\t: 3141.5\n")
    assert machine.fingerprint([GPU, CPU], software, info) == base


def test_this_machine_is_described():
    """The CPU is usable, onnxruntime is installed, and the fingerprint is the same twice."""
    here = machine.describe("generic-x", [CPU])
    assert here.usable == {"cpu"}
    assert here.runtimes["onnxruntime"]
    assert here.fingerprint == machine.describe("generic-x", [CPU]).fingerprint
