"""agentd's side of an FPGA over each way of programming, played by fakes; no FPGA is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgefleet_agent.accelerators.fpga import book, firmware, kernel
from edgefleet_agent.accelerators.fpga.states import ProgramError
from edgefleet_agent.errors import NeedsDrainError
from edgefleet_shared.errors import IncompatibleError, TrustError
from tests.agent.fpga.ways import bench as make_bench

WAYS = ["overlay", "sysfs", "dfx-mgr"]


@pytest.fixture(params=WAYS)
def bench(request, tmp_path):
    """A board with two slots, for each way."""
    one = make_bench(tmp_path, request.param)
    yield one
    one.close()


def test_the_report_names_way_and_slots(bench):
    """What is there is told, with the way that programs it."""
    report = bench.region().probe()
    assert report.usable, report.why_not
    assert report.driver == bench.options.strategy
    assert report.detail["slots"] == 2


def test_two_slots_hold_two_versions_and_a_third_must_wait(bench):
    """The new one goes beside the old one; without a free slot, who is in the way is named."""
    region = bench.region()
    one, two, three = (bench.package(name, seed=n) for n, name in enumerate(["a", "b", "c"]))
    first, second = bench.program(region, one), bench.program(region, two)
    assert {first, second} == {"0", "1"}
    assert region.state(first) == region.state(second) == "operating"
    with pytest.raises(NeedsDrainError) as full:
        region.reserve(three.spec)
    assert set(full.value.holders) == {one.spec.digest, two.spec.digest}
    assert region.retain({two.spec.digest}) == [one.spec.digest]
    assert region.state(first) == "free"
    assert bench.program(region, three) == first


def test_the_old_face_of_dfx_mgr_is_spoken_too(tmp_path):
    """The client of 2022 loads by its own commands, and a slot is given back by its number."""
    bench = make_bench(tmp_path, "dfx-mgr of 2022")
    region, one, two = bench.region(), bench.package("a"), bench.package("b", seed=2)
    assert [bench.program(region, one), bench.program(region, two)] == ["0", "1"]
    assert region.retain({two.spec.digest}) == [one.spec.digest]
    assert list(json.loads((tmp_path / "daemon.json").read_text()).values()) == [1]
    assert region.ready(two.spec)
    assert not region.ready(one.spec)


def test_a_flat_design_has_no_free_slot(bench):
    """A whole bitstream takes the whole FPGA, and goes nowhere while another is there."""
    region = bench.region()
    one = bench.package("a")
    bench.program(region, one)
    with pytest.raises(NeedsDrainError) as full:
        region.reserve(bench.package("flat", slots=1).spec)
    assert full.value.holders == (one.spec.digest,)


def test_programming_again_does_nothing(bench):
    """A slot that holds the package already is not touched."""
    region = bench.region()
    one = bench.package("a")
    slot = bench.program(region, one)
    before = {p: p.stat().st_mtime_ns for p in Path(bench.options.firmware).rglob("*.bin")}
    assert before
    assert bench.program(region, one) == slot
    assert {p: p.stat().st_mtime_ns for p in Path(bench.options.firmware).rglob("*.bin")} == before


def test_what_was_released_leaves_nothing(bench):
    """Its files are gone from the firmware folder, and the slot is free."""
    region = bench.region()
    slot = bench.program(region, bench.package("a"))
    region.release(slot)
    assert region.state(slot) == "free"
    left = [p.name for p in Path(bench.options.firmware).rglob("*") if p.is_file()]
    assert [name for name in left if name != "shell.json"] == []


def test_a_restarted_agent_goes_on_with_what_is_loaded(bench):
    """Within one boot the fabric keeps its content, and nothing is programmed twice."""
    one = bench.package("a")
    bench.program(bench.region(), one)
    again = bench.region()
    assert again.ready(one.spec)
    assert again.probe().detail["held"] == {"0": one.spec.digest}


def test_after_a_power_cut_nothing_is_believed(bench):
    """The fabric is blank then, whatever the book says; programming brings it back."""
    one = bench.package("a")
    bench.program(bench.region(), one)
    bench.cut_power()
    region = bench.region(boot="second")
    assert not region.ready(one.spec)
    bench.program(region, one)
    assert region.ready(one.spec)


class PowerCut(BaseException):
    """Nothing after this happens."""


class Points:
    """Counts the points at which power may go, and ends everything at one of them."""

    def __init__(self, monkeypatch, at: int) -> None:
        self.passed, self.at = 0, at
        acts = ((book.durable, "atomic_write"), (firmware, "_copy"), (kernel, "_write"))
        for module, name in acts:
            monkeypatch.setattr(module, name, self._around(getattr(module, name)))

    def _around(self, act):
        def acted(*arguments, **named):
            self._point()
            result = act(*arguments, **named)
            self._point()
            return result

        return acted

    def _point(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise PowerCut


@pytest.mark.parametrize(
    ("way", "power"), [("overlay", True), ("sysfs", False)], ids=["power cut", "agentd killed"]
)
def test_whatever_ends_it_old_or_new_can_be_had_afterwards(tmp_path, way, power):
    """At each write, copy and attribute: after a restart nothing is believed that is not so."""
    bench = make_bench(tmp_path, way)
    try:
        old, new = bench.package("a"), bench.package("b", seed=2)
        point, came_through = 0, False
        while not came_through:
            point += 1
            first = bench.region(f"{point}")
            bench.program(first, old)
            with pytest.MonkeyPatch.context() as monkeypatch:
                points = Points(monkeypatch, point)
                try:
                    bench.program(first, new)
                    came_through = True  # every point was tried
                except PowerCut:
                    assert points.passed == point
            if power:
                bench.cut_power()
            after = bench.region(f"{point} again" if power else f"{point}")
            assert not (power and (after.ready(old.spec) or after.ready(new.spec)))
            for package in (old, new):
                bench.program(after, package)
                assert after.ready(package.spec)
            after.retain(set())
            left = [p.name for p in Path(bench.options.firmware).rglob("*") if p.is_file()]
            assert left == [], point
        assert point > 8
    finally:
        bench.close()


def test_bytes_that_changed_are_not_placed(bench):
    """What is copied is hashed as it is copied; the slot is not programmed with anything else."""
    region = bench.region()
    one = bench.package("a")
    data = bytearray(one.paths[0].read_bytes())
    data[-1] ^= 1
    one.paths[0].write_bytes(data)
    with pytest.raises(TrustError):
        bench.program(region, one)
    assert not region.ready(one.spec)
    assert not list(Path(bench.options.firmware).rglob("*.bit.bin"))


def test_a_file_of_the_system_is_not_replaced(bench):
    """A name in the firmware folder that we did not place stays as it is."""
    region = bench.region()
    one = bench.package("a")
    slot = region.reserve(one.spec)
    bench.program(region, one)
    placed = next(Path(bench.options.firmware).rglob("*.bit.bin"))
    region.release(slot)
    placed.parent.mkdir(parents=True, exist_ok=True)
    placed.write_bytes(b"the system's own")
    with pytest.raises(ProgramError) as taken:
        bench.program(region, one)
    assert taken.value.code == "fpga_firmware_taken"
    assert placed.read_bytes() == b"the system's own"


def test_other_hardware_is_told_in_a_sentence(bench):
    """Board, static design and DPU are compared before anything is copied."""
    region = bench.region()
    assert region.compatible(bench.package("a").spec) == ""
    for changed, word in (
        ({"board": "kr260"}, "kr260"),
        ({"fingerprint": "0x1"}, "0x1"),
    ):
        why = region.compatible(bench.package("a", **changed).spec)
        assert word in why
        assert why.endswith(".")


@pytest.mark.parametrize("way", ["overlay", "sysfs"])
@pytest.mark.parametrize(
    "state",
    ["firmware request", "write init", "write", "write complete"],
)
def test_each_error_of_the_manager_is_told_and_passes(tmp_path, way, state):
    """Every error state ends in a sentence with its cause; the slot can be programmed after it."""
    bench = make_bench(tmp_path, way)
    try:
        region, one = bench.region(), bench.package("a")
        bench.order(error=f"{state} error")
        with pytest.raises(ProgramError) as failed:
            bench.program(region, one)
        assert f"'{state} error'" in str(failed.value)
        assert "CRC" in str(failed.value)
        assert region.state("0") == "error"
        bench.order(delay_s=0.02)
        bench.program(region, one)
        assert bench.kernel.states()[-6:] == [
            "firmware request", "firmware request", "write init", "write", "write complete",
            "operating",
        ]  # fmt: skip
    finally:
        bench.close()


def test_a_manager_that_hangs_is_given_up(tmp_path):
    """What is not operating in time is an error, and not waited for."""
    bench = make_bench(tmp_path, "sysfs")
    try:
        slow = bench._replace(
            options=bench.options.__class__(
                **{f: getattr(bench.options, f) for f in bench.options.__struct_fields__}
                | {"timeout_s": 0.1}
            )
        )
        bench.order(delay_s=0.5)
        with pytest.raises(ProgramError, match=r"not operating after 0\.1 s"):
            slow.program(slow.region(), slow.package("a"))
    finally:
        bench.close()


def test_another_static_design_is_refused(tmp_path):
    """A partial bitstream for another shell never reaches the FPGA."""
    bench = make_bench(tmp_path, "overlay")
    try:
        why = bench.region().compatible(bench.package("a", parent="ab" * 16).spec)
        assert "static design" in why
    finally:
        bench.close()


@pytest.mark.parametrize("way", ["dfx-mgr", "dfx-mgr of 2022"])
def test_what_dfx_mgr_refuses_is_told(tmp_path, way):
    """A wrong UUID, a refusal and a daemon that is away, each in words."""
    bench = make_bench(tmp_path, way)
    region, one = bench.region(), bench.package("a")
    if "2022" not in way:  # the old list has no such column
        bench.order(id_err=True)
        with pytest.raises(ProgramError) as failed:
            bench.program(region, one)
        assert failed.value.code == "fpga_wrong_shell"
    bench.order(refuse=True)
    with pytest.raises(ProgramError, match="load Error"):
        bench.program(region, one)
    bench.order(down=True)
    report = bench.region().probe()
    assert not report.usable
    assert "dfx-mgrd does not answer" in report.why_not


def test_slots_taken_by_others_are_found_full(tmp_path):
    """Somebody else may load too: the daemon's word counts, not our book."""
    bench = make_bench(tmp_path, "dfx-mgr")
    (tmp_path / "daemon.json").write_text('{"theirs": 0, "too": 1}')
    with pytest.raises(ProgramError, match="no empty slot"):
        bench.program(bench.region(), bench.package("a"))


def test_a_header_that_lies_is_refused(tmp_path):
    """A bitstream without a sync word and an overlay that asks for other firmware go nowhere."""
    bench = make_bench(tmp_path, "overlay")
    try:
        region = bench.region()
        for index, data in ((0, b"no bitstream at all"), (1, b"\xd0\x0d\xfe\xed")):
            one = bench.package(f"bad{index}")
            _replace(one, index, data)
            with pytest.raises(IncompatibleError) as refused:
                bench.program(region, one)
            assert refused.value.code == ("fpga_bitstream", "fpga_overlay")[index]
            region.retain(set())
        assert not list(Path(bench.options.firmware).rglob("*.bin"))
    finally:
        bench.close()


def _replace(package, index: int, data: bytes) -> None:
    from msgspec.structs import replace

    from edgefleet_shared.identifiers import sha256_digest

    package.paths[index].write_bytes(data)
    files = list(package.spec.files)
    files[index] = replace(files[index], digest=sha256_digest(data), size=len(data))
    package.spec = replace(package.spec, files=files)


def test_a_plain_machine_says_what_it_lacks(tmp_path):
    """Without anything, the report names each thing that was looked for."""
    bench = make_bench(tmp_path, "dfx-mgr")
    options = bench.options.__class__(sysfs=str(tmp_path / "none"), configfs=str(tmp_path / "none"))
    report = bench._replace(options=options).region().probe()
    assert not report.usable
    assert report.why_not.startswith("unavailable: no dfx-mgr-client on PATH; no xrt-smi")
    assert "no fpga_manager" in report.why_not
    assert report.why_not.endswith(".")


def test_a_window_is_opened_for_a_worker(tmp_path):
    """The descriptor is of the slot's own device, and open for reading and writing."""
    bench = make_bench(tmp_path, "overlay")
    try:
        region = bench.region()
        one, two = bench.package("a"), bench.package("b")
        first, second = bench.program(region, one), bench.program(region, two)
        (a,), (b,) = region.open(first, one.spec), region.open(second, two.spec)
        assert os.fstat(a).st_ino != os.fstat(b).st_ino
        assert os.pwrite(a, b"\1", 0) == 1
        os.close(a)
        os.close(b)
        region.release(first)
        assert bench.kernel.windows() <= {"core1", "core0"}
    finally:
        bench.close()
