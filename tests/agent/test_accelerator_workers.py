"""Workers for accelerators: started afresh, a spare waits, and how much looser their sandbox is.

The device is played by the CPU's provider in the place of a GPU's: process, order, limits and
filter are those of a real one. `test_webgpu` and `test_cuda` have the real ones.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from edgefleet_agent.ipc import control
from edgefleet_agent.providers import CPU
from edgefleet_agent.worker import devices, landlock, seccomp, syscalls
from edgefleet_shared.package import Limits
from tests.agent.gateways import fp32, wait_for
from tests.agent.test_loading import linear_golden
from tests.models import Package, greedy, linear, package

REPLACE = msgspec.structs.replace


def on_gpu(folder: Path, model: bytes, **fields) -> Package:
    """Return a package for a GPU, placed by agentd on the provider that is here."""
    made = package(folder, model, accelerator="gpu", **fields)
    return Package(REPLACE(made.spec, placement={CPU: {}}), made.paths)


def started_by(pid: int) -> str:
    """Return a process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def spares(gateway) -> list[int]:
    """Return the pids of processes that wait for work."""
    found = []
    for pid in gateway.children():
        with contextlib.suppress(OSError):
            if "--spare" in started_by(pid):
                found.append(pid)
    return found


def test_they_are_never_forked_and_the_second_waits_already(gateway, tmp_path):
    """The first is a new program; then one waits, which the next takes; a crash takes one too."""
    one = on_gpu(tmp_path, linear(2.0), golden=linear_golden(2.0), cases=1)
    gateway.control.serve(one)
    first = gateway.control.ask(control.Hello).workers[0].pid
    assert "edgefleet_agent.worker --fd 3" in started_by(first)
    (spare,) = wait_for(lambda: spares(gateway), "a spare")
    two = on_gpu(tmp_path, linear(3.0), version="2.0.0")
    gateway.control.serve(two)
    workers = {w.digest: w.pid for w in gateway.control.ask(control.Hello).workers}
    assert workers[two.spec.digest] == spare
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[1]["outputs"][0]["data"] == [30, 30]
    (waiting,) = wait_for(lambda: set(spares(gateway)) - {spare}, "another spare")
    os.kill(spare, signal.SIGKILL)
    gateway.control.wait_event("restarted")
    workers = {w.digest: w.pid for w in gateway.control.ask(control.Hello).workers}
    assert workers[two.spec.digest] == waiting
    assert gateway.infer(fp32("x", [1, 2, 3, 4], [1, 4]))[0] == 200


def test_a_device_without_accelerators_pays_for_no_spare(gateway, tmp_path):
    """CPU workers are forked, and nothing waits."""
    gateway.control.serve(package(tmp_path, linear(2.0)))
    pid = gateway.control.ask(control.Hello).workers[0].pid
    assert "edgefleet_agent.zygote" in started_by(pid)
    assert not spares(gateway)


def test_a_dead_spare_is_no_trouble(gateway, tmp_path):
    """It was killed while it waited: the next worker is started as the first was."""
    gateway.control.serve(on_gpu(tmp_path, linear(2.0)))
    (spare,) = wait_for(lambda: spares(gateway), "a spare")
    os.kill(spare, signal.SIGKILL)
    wait_for(lambda: spare not in spares(gateway), "its end")
    assert gateway.control.load(on_gpu(tmp_path, linear(3.0), version="2.0.0")).ok


def test_every_layer_holds_and_memory_is_limited_all_the_same(gateway, tmp_path):
    """The layers are those of a CPU worker; what is written to counts, not what is reserved."""
    outcome = gateway.control.prove(on_gpu(tmp_path, linear(1.0)))
    assert outcome.ok, outcome
    cpu = gateway.control.prove(package(tmp_path, linear(1.0)))
    assert outcome.sandbox == cpu.sandbox
    big = on_gpu(tmp_path, greedy(400), limits=Limits(memory_mb=300))
    assert gateway.control.prove(big).code == "out_of_memory"


RESERVE = """
import mmap, resource
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
private, anonymous, unreserved = 2, 0x20, 0x4000
area = mmap.mmap(-1, 2**37, private | anonymous | unreserved, prot=0)  # 128 GiB, as CUDA does
try:
    bytearray(2**31)
except MemoryError:
    print("limited")
"""


def test_reserved_addresses_do_not_count_against_the_limit():
    """What a driver only reserves is free; what is written to is limited: by RLIMIT_DATA."""
    command = [sys.executable, "-c", RESERVE]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "limited\n", found.stderr


TRIES = """
import errno, os, sys
from edgefleet_agent.worker import landlock, sandbox, seccomp
allowed, other, folder = sys.argv[1:4]
sandbox.prctl(38, 1)
landlock.restrict([*sandbox.READABLE, folder], [], devices=[allowed])
assert seccomp.install(fatal=False, devices=True)
def attempt(what):
    try:
        return what() and "done" or "done"
    except OSError as error:
        return errno.errorcode[error.errno]
print(attempt(lambda: os.open(allowed, os.O_RDWR)), attempt(lambda: os.open(other, os.O_RDWR)),
      attempt(lambda: os.open(other, os.O_RDONLY)),
      attempt(lambda: os.open(allowed, os.O_RDWR | os.O_TRUNC)),
      attempt(lambda: os.open(folder + "/new", os.O_RDWR | os.O_CREAT)),
      attempt(lambda: os.unlink(other)), attempt(lambda: os.memfd_create("x")),
      attempt(lambda: os.execv("/bin/true", ["true"])))
"""


def test_only_its_device_files_can_be_written(tmp_path):
    """Of two files the worker may write one; nothing can be made, emptied, removed or started."""
    allowed, other = tmp_path / "nvidia0", tmp_path / "notes"
    allowed.write_text("device")
    other.write_text("mine")
    command = [sys.executable, "-c", TRIES, allowed, other, tmp_path]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [
        "done", "EACCES", "done", "EACCES", "EACCES", "EACCES", "done", "EPERM",
    ], found.stderr  # fmt: skip
    assert landlock.abi()
    assert (allowed.read_text(), other.read_text()) == ("device", "mine")


def test_the_filter_of_other_workers_is_as_tight_as_it_was():
    """What a driver needs is open for accelerators alone, and `fatal` never goes with it."""
    arch = syscalls.architecture("x86_64")
    tight = seccomp.program(arch, 1, fatal=True)
    loose = seccomp.program(arch, 1, fatal=False, devices=True)
    memfd = arch.numbers["memfd_create"]
    assert any(i[0] == 0x15 and i[3] == memfd for i in tight)
    assert not any(i[0] == 0x15 and i[3] == memfd for i in loose)
    writing = [i[3] for i in tight if i[0] == 0x54]
    assert all(flags & os.O_RDWR for flags in writing)


def test_which_device_files_those_are(tmp_path):
    """A GPU's worker gets GPUs, an NPU's NPUs, USB a delegate alone; a CPU's worker gets none."""
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "dri/renderD128", "accel/accel0", "apex_0",
                 "sda", "mem", "bus/usb/001/002"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    spec = package(tmp_path, linear(), accelerator="gpu").spec

    def names(**changes) -> set[str]:
        found = devices.writable(REPLACE(spec, **changes), tmp_path)
        return {str(Path(one).relative_to(tmp_path)) for one in found}

    assert names() == {"nvidia0", "nvidiactl", "nvidia-uvm", "dri/renderD128"}
    assert names(accelerator="npu") == {"accel/accel0", "apex_0", "dri/renderD128"}
    delegate = {"edgetpu": {"library": "/usr/lib/x/libedgetpu.so.1"}}
    assert "bus/usb" in names(accelerator="npu", placement=delegate)
    assert "/usr/lib/x" in devices.readable(REPLACE(spec, placement=delegate))
    assert not names(accelerator="cpu")
    assert not devices.readable(REPLACE(spec, accelerator="cpu", placement=delegate))
