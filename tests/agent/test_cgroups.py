"""Workers in control groups: where there are none, where the kernel says no, and on a real cgroup2.

The folder of files is a kernel-interface fake: it tells whether we write what the kernel documents,
not whether the kernel obeys. The last test asks a real kernel, where one lends us its memory
controller.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgefleet_agent.gateway.cgroups import Cgroups
from edgefleet_shared.package import Limits
from tests.agent.gateways import Gateway
from tests.models import linear, package

LIMITS = Limits(memory_mb=100)


@pytest.fixture
def base(tmp_path):
    """A group as the kernel shows one that has been delegated."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids cpu\n")
    return tmp_path


def group(base: Path, pid: int) -> Path:
    """Make the files that the kernel makes in a new group."""
    made = base / f"worker-{pid}"
    made.mkdir()
    for name in ("memory.max", "memory.oom.group", "pids.max", "cpu.weight", "cgroup.procs"):
        (made / name).write_text("")
    return made


def test_a_worker_gets_the_limits_of_its_package(base):
    """Memory with room for the runtime, threads, and the least share for what only proves."""
    groups = Cgroups.find(str(base))
    assert groups.layer == "cgroup memory+pids+cpu"
    made = group(base, 7)
    assert groups.place(7, LIMITS, prove=True)
    assert (made / "memory.max").read_text() == str(228 * 2**20)
    assert (made / "memory.oom.group").read_text() == "1"
    assert (made / "cpu.weight").read_text() == "1"
    assert (made / "cgroup.procs").read_text() == "7"
    made = group(base, 8)
    assert groups.place(8, LIMITS, prove=False)
    assert (made / "cpu.weight").read_text() == "100"


def test_a_file_that_the_kernel_has_not_got_is_never_made(base):
    """An old kernel: the worker is held by its rlimits, nothing is left behind."""
    groups = Cgroups.find(str(base))
    assert not groups.place(9, LIMITS, prove=False)
    assert not (base / "worker-9").exists()


def test_the_kernel_s_word_on_memory_is_believed(base):
    """`oom_kill` of the group's own events decides; a group that is gone says no."""
    groups = Cgroups.find(str(base))
    made = group(base, 7)
    (made / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n")
    assert groups.out_of_memory(7)
    (made / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n")
    assert not groups.out_of_memory(7)
    assert not groups.out_of_memory(8)


@pytest.mark.parametrize("configured", ["", "auto", "/nowhere"])
def test_without_delegation_there_is_a_reason(configured, tmp_path):
    """No groups, and why."""
    (tmp_path / "cgroup").write_text("0::/user.slice/me\n")
    (tmp_path / "mountinfo").write_text(f"35 24 0:30 / {tmp_path} rw,nosuid - cgroup2 cgroup2 rw\n")
    groups = Cgroups.find(configured, tmp_path)
    assert groups.base is None
    assert groups.why_not
    assert not groups.layer
    assert not groups.place(os.getpid(), LIMITS, prove=False)


def test_what_systemd_delegates_is_found(tmp_path):
    """The group above our own, by the mark that systemd puts on it."""
    unit = tmp_path / "system.slice" / "agent.service"
    (unit / "main").mkdir(parents=True)
    (unit / "cgroup.controllers").write_text("memory\n")
    (unit / "cgroup.subtree_control").write_text("memory\n")
    (tmp_path / "cgroup").write_text("1:name=x:/\n0::/system.slice/agent.service/main\n")
    (tmp_path / "mountinfo").write_text(
        f"34 24 0:29 / /sys/x rw - tmpfs tmpfs rw\n35 24 0:30 / {tmp_path} rw - cgroup2 cgroup rw\n"
    )
    assert Cgroups.find("auto", tmp_path).base is None
    try:
        os.setxattr(unit, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"the file system of {tmp_path} keeps no user attributes: {error}")
    assert Cgroups.find("auto", tmp_path).base == unit


def test_a_gateway_serves_where_no_group_can_be_had(tmp_path):
    """The groups cannot be made; the worker comes up all the same and no layer is claimed."""
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    gateway = Gateway("--cgroup", str(tmp_path))
    try:
        outcome = gateway.control.serve(package(tmp_path, linear(2.0)))
        assert not [layer for layer in outcome.sandbox if layer.startswith("cgroup")]
    finally:
        gateway.close()


def real() -> Path | None:
    """Return a cgroup2 with a memory controller that we may use, or None."""
    for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        try:
            held = (path / "cgroup.controllers").read_text().split()
        except OSError:
            continue
        if "memory" in held and os.access(path / "cgroup.subtree_control", os.W_OK):
            return path
    return None


@pytest.mark.skipif(real() is None, reason="no cgroup2 with a memory controller is writable here")
def test_a_real_kernel_ends_what_outgrows_its_group():
    """A process that takes more than its group may have is killed, and that is known."""
    base = real() / "edgefleet-test"
    base.mkdir(exist_ok=True)
    groups = Cgroups.find(str(base))
    code = "import sys; sys.stdin.read(); b = bytearray(400 << 20); b[::4096] = b'x' * (100 << 10)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        assert groups.place(child.pid, LIMITS, prove=False)
        child.communicate(b"")
        assert child.returncode == -9
        assert groups.out_of_memory(child.pid)
    finally:
        child.kill()
        child.wait()
        groups.remove(child.pid)
        base.rmdir()
