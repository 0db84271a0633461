"""Section F, the sandbox: a runtime that attacks reaches nothing, and is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgefleet_agent.ipc import control
from edgefleet_agent.status import read_status
from edgefleet_agent.worker import landlock, seccomp, syscalls
from tests.adversarial.device import Device
from tests.agent.gateways import Gateway, fp32
from tests.agent.world import World, until
from tests.models import linear, package


@pytest.fixture(scope="module")
def bought(tmp_path_factory):
    """A real gateway whose runtime `litert` is an attacker's."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "sitecustomize.py").write_text(
        "import edgefleet_agent.worker.compose as c\n"
        "c.RUNTIMES['litert'] = 'tests.adversarial.evil_runtime:Evil'\n"
    )
    root = Path(__file__).parents[2]
    one = Gateway(environ={"PYTHONPATH": f"{folder}{os.pathsep}{root}"})
    one.folder = folder
    yield one
    one.close()


@pytest.fixture(scope="module")
def ear():
    """A server that hears whoever gets out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def attack(gateway, folder, name, target="", **more):
    """Prove a package whose runtime attacks."""
    one = package(folder, linear(1.0), runtime="litert", attack=name, target=str(target), **more)
    return gateway.control.prove(one)


FATAL = {
    "connect", "datagram", "listen", "abstract", "command_the_gateway", "exec", "trace", "mount",
    "namespace", "ring", "keys",
}  # fmt: skip
"""What nothing but an attack does: the proving process is ended, swallowed error or not."""


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("name", sorted(FATAL - {"abstract", "command_the_gateway"}))
def test_53_a_runtime_that_reaches_out_is_ended_and_refused(bought, ear, tmp_path, name, quiet):
    """Network, programs, other processes and the kernel: SIGSYS, also when it swallows errors."""
    targets = {"connect": "{}:{}".format(*ear.getsockname()), "trace": bought.process.pid}
    targets["datagram"] = targets["connect"]
    target = targets.get(name, tmp_path)
    outcome = attack(bought, tmp_path, name, target, quiet=quiet)
    assert (outcome.ok, outcome.code) == (False, "sandbox_violation"), outcome
    with pytest.raises(BlockingIOError):
        ear.accept()
    assert bought.process.poll() is None


BLOCKED = {
    "abstract": "EPERM", "command_the_gateway": "EPERM", "write": "EACCES", "replace": "EACCES",
    "chmod": "EACCES", "read": "EACCES", "list": "EACCES", "hidden": "EPERM", "start": "EPERM",
    "fork": "EPERM", "kill": "EPERM", "peek": "EACCES", "raise_limits": "EPERM",
    "outlive": "EPERM", "unheard_of": "ENOSYS",
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKED)
def test_53_what_a_library_may_only_probe_fails_and_changes_nothing(bought, tmp_path, name):
    """Files, processes and limits: an error number comes back, and nothing has changed outside."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    victim.chmod(0o666)
    targets = {
        "kill": bought.process.pid, "peek": bought.process.pid, "list": tmp_path,
        "command_the_gateway": bought.run / "control.sock", "write": tmp_path / "new",
        "start": tmp_path / "new",
    }  # fmt: skip
    outcome = attack(bought, tmp_path, name, targets.get(name, victim))
    assert (outcome.ok, outcome.code) == (False, "load_failed"), outcome
    assert outcome.message == f"attack {name}: {BLOCKED[name]}"
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("untouched", 0o666)
    assert not (tmp_path / "new").exists()
    assert bought.process.poll() is None


def test_53_a_runtime_that_swallows_its_failed_write_has_written_nothing(bought, tmp_path):
    """The quiet attacker proves, for all that it did was fail; the file is not there."""
    for target in (tmp_path / "new", "/tmp/edgefleet-was-here", "/dev/shm/edgefleet-was-here"):
        assert attack(bought, tmp_path, "write", target, quiet=True).ok
        assert not Path(target).exists()


def test_53_a_runtime_that_behaves_proves(bought, tmp_path):
    """Threads, own memory, own limits: the sandbox is no reason for a refusal."""
    outcome = attack(bought, tmp_path, "none")
    assert outcome.message == "attack none: done"
    outcome = attack(bought, tmp_path, "none", quiet=True)
    assert outcome.ok, outcome
    assert control.missing_layers(outcome.sandbox) == []


def test_53_a_serving_worker_is_shut_in_as_well(bought, tmp_path):
    """The same layers; what is refused is an error there, not the end of the worker."""
    one = package(tmp_path, linear(1.0), runtime="litert", attack="listen", target="", quiet=True)
    outcome = bought.control.load(one)
    assert outcome.ok, outcome
    fields = dict(
        line.split(":\t") for line in Path(f"/proc/{outcome.pid}/status").read_text().splitlines()
    )
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    mine = Path("/proc/self/ns/net").readlink()
    assert os.geteuid() or Path(f"/proc/{outcome.pid}/ns/net").readlink() != mine


def resident_kb(pid: int) -> int:
    """Return a process's resident memory."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


@pytest.mark.parametrize(("name", "code"), [("flood", "crashed"), ("babble", "x" * 64)])
def test_53_a_worker_that_floods_its_gateway_costs_it_nothing(bought, tmp_path, name, code):
    """Four gigabytes announced, or texts of megabytes: cut off or cut short, and answered."""
    before = resident_kb(bought.process.pid)
    outcome = attack(bought, tmp_path, name)
    assert (outcome.ok, outcome.code) == (False, code)
    assert len(outcome.message) <= 2000
    assert outcome.load_ms <= 2**31
    assert resident_kb(bought.process.pid) - before < 20_000


def test_53_a_worker_that_answers_nonsense_is_replaced_and_the_gateway_goes_on(bought, tmp_path):
    """A status that no worker gives ends it; the request fails, the next ones are answered."""
    one = package(
        tmp_path, linear(1.0), runtime="litert", name="n", attack="nonsense", target="", quiet=True
    )
    bought.control.serve(one)
    status, body, _ = bought.infer(fp32("x", [1] * 4, [1, 4]), "n")
    assert (status, body["code"]) in {(500, "inference_failed"), (503, "worker_lost")}
    assert bought.process.poll() is None
    assert bought.request("GET", "/v2/health/live")[0] == 200


class Poor(Gateway):
    """A gateway without any privilege, as a device's service has it."""

    def command(self) -> list[str]:
        wrapper = (
            "import os, sys; from edgefleet_agent.worker import sandbox as s;"
            "s.prctl(38, 1); assert s.drop_capabilities(); os.execv(sys.argv[1], sys.argv[1:])"
        )
        return [sys.executable, "-c", wrapper, *super().command()]


def test_53_without_privilege_every_layer_holds_but_the_network_namespace(tmp_path):
    """Landlock, seccomp and the rest ask for no right that a plain user lacks."""
    gateway = Poor()
    try:
        outcome = gateway.control.prove(package(tmp_path, linear(1.0)))
        assert outcome.ok
        assert control.missing_layers(outcome.sandbox) == []
        assert "netns" not in outcome.sandbox
    finally:
        gateway.close()


def alone(layer: str, name: str, target) -> str:
    """Attack from a process that one layer alone shuts in; the layer `none` is no layer."""
    code = (
        "import sys; from tests.adversarial.evil_runtime import ATTACKS, errno;"
        "from edgefleet_agent.worker import landlock, sandbox, seccomp;"
        "layer, name, target = sys.argv[1:];"
        "sandbox.prctl(38, 1);"
        "layer, _, version = layer.partition(' ');"
        "landlock.abi = (lambda: int(version)) if version else landlock.abi;"
        "layer == 'landlock' and landlock.restrict(sandbox.READABLE, []);"
        "layer == 'seccomp' and seccomp.install(fatal=False);"
        "layer == 'capabilities' and sandbox.drop_capabilities()\n"
        "try: ATTACKS[name](target); print('done')\n"
        "except OSError as e: print(errno.errorcode[e.errno])"
    )
    command = [sys.executable, "-B", "-c", code, layer, name, str(target)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, check=False, cwd=root, capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize(
    ("name", "answers"),
    {
        "write": {"none": "done", "landlock": "EACCES", "seccomp": "EACCES"},
        "read": {"none": "done", "landlock": "EACCES"},
        "connect": {"none": "done", "landlock": "EACCES", "seccomp": "EPERM"},
        "listen": {"none": "done", "landlock": "EACCES", "seccomp": "EPERM"},
        "kill": {"none": "done", "landlock": "EPERM", "seccomp": "EPERM"},
        "fork": {"none": "done", "seccomp": "EPERM"},
        "start": {"none": "done", "seccomp": "EPERM"},
    }.items(),
)
def test_53_each_layer_holds_by_itself(ear, tmp_path, name, answers):
    """Without a layer the attack succeeds, with that layer alone it fails, and root is no help."""
    if landlock.abi() < 6:
        answers = {layer: a for layer, a in answers.items() if layer != "landlock"}
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        targets = {"connect": "{}:{}".format(*ear.getsockname()), "kill": sleeper.pid}
        for layer, answer in reversed(answers.items()):  # the one that succeeds is the last
            victim = tmp_path / "victim"
            victim.write_text("a secret")
            assert alone(layer, name, targets.get(name, victim)) == answer, layer
        sleeper.kill()


@pytest.mark.skipif(landlock.abi() < 6, reason="the kernel's own Landlock is too old to compare")
@pytest.mark.parametrize(("version", "tcp"), [(1, "done"), (2, "done"), (3, "done"), (5, "EACCES")])
def test_53_an_older_landlock_does_what_it_can(ear, tmp_path, version, tcp):
    """A kernel is asked for no more than its version knows: files from 1 on, TCP from 4 on."""
    victim = tmp_path / "victim"
    victim.write_text("a secret")
    assert alone(f"landlock {version}", "write", victim) == "EACCES"
    assert alone(f"landlock {version}", "read", victim) == "EACCES"
    assert alone(f"landlock {version}", "connect", "{}:{}".format(*ear.getsockname())) == tcp


def test_53_filters_are_right_for_every_architecture_that_is_known():
    """Each jump stays inside its rule, and each number is the one in the kernel's headers."""
    for machine in ("x86_64", "aarch64"):
        arch = syscalls.architecture(machine)
        for code in (seccomp.program(arch, 4711, fatal=True), seccomp.quiet_program(arch)):
            assert len(code) < 4096
            for at, (operation, if_true, if_false, _) in enumerate(code):
                assert operation == 0x06 or at + max(if_true, if_false) + 1 < len(code)
            assert code[-1] == (0x06, 0, 0, 0x7FFF0000)
        header = HEADERS[machine]
        if not header.exists():
            continue  # of linux-libc-dev: both come with the C compiler
        known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
        numbers = {n.removeprefix("3264_"): int(v) for n, v in known.items()}
        wrong = {n: v for n, v in arch.numbers.items() if v != numbers.get(n, v)}
        assert wrong == {}
    assert syscalls.architecture("riscv64") is None


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


OLD_KERNEL = """
import edgefleet_agent.worker.landlock as landlock, edgefleet_agent.worker.seccomp as seccomp
landlock.abi = lambda: 0
seccomp.install = lambda **_: False
"""


def test_53_a_missing_layer_is_told_once_and_is_no_reason_not_to_serve(tmp_path):
    """An old kernel: the model serves, the report names what holds, one event what does not."""
    (tmp_path / "sitecustomize.py").write_text(OLD_KERNEL)
    world = World()
    device = Device(world, {"PYTHONPATH": str(tmp_path)}).start()
    try:
        device.serve("1.0.0")
        device.serve("2.0.0", 3.0)
        event = device.event("sandbox_incomplete")
        assert (event["level"], "landlock, seccomp" in event["message"]) == ("warning", True)
        codes = [e["code"] for e in device.transport.items("events")]
        assert codes.count("sandbox_incomplete") == 1
        held = until(lambda: device.transport.reported[-1]["agent"].get("sandbox"))
        assert control.missing_layers(held) == ["landlock", "seccomp"]
    finally:
        device.close()
        world.close()


def test_53_report_and_status_name_the_layers_that_hold():
    """What workers are shut in by stands in the reported document and in `status`."""
    world = World()
    device = Device(world).start()
    try:
        device.serve()
        held = until(lambda: device.transport.reported[-1]["agent"].get("sandbox"))
        assert control.missing_layers(held) == []
        assert read_status(device.run_dir)["sandbox"] == held
        codes = [e["code"] for e in device.transport.items("events")]
        assert "sandbox_incomplete" not in codes
    finally:
        device.close()
        world.close()
