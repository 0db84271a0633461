"""Section F: models that attack whoever loads them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from onnx import onnx_ml_pb2

from edgefleet_agent.ipc import control
from edgefleet_agent.ipc.frames import Order
from edgefleet_agent.store import Store
from edgefleet_agent.worker import compose, landlock, lint, opening, seccomp, syscalls
from edgefleet_shared.errors import TrustError
from edgefleet_shared.identifiers import sha256_digest
from tests.adversarial import hostile_models
from tests.adversarial.device import Device
from tests.adversarial.hostile_models import VARIANTS
from tests.agent.gateways import Gateway, fp32
from tests.agent.world import World
from tests.models import Package, linear, package
from tests.provisioning import bad_models as bad


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """A device with a real gateway that serves version 1.0.0."""
    device = Device(world).start()
    device.one = device.serve()
    yield device
    device.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A real gateway that serves a good model."""
    one = Gateway()
    one.control.serve(package(tmp_path_factory.mktemp("good"), linear(2.0)))
    yield one
    one.close()


def described(folder: Path, model: bytes, **more):
    """A package of any bytes, described as the good model is."""
    good = package(folder, linear(1.0), **more)
    path = folder / "hostile.onnx"
    path.write_bytes(model)
    entry = good.spec.files[0]
    entry = msgspec.structs.replace(entry, digest=sha256_digest(model), size=len(model))
    spec = msgspec.structs.replace(
        good.spec, files=[entry, *good.spec.files[1:]], digest=sha256_digest(model + b"package")
    )
    return Package(spec, [path, *good.paths[1:]])


@pytest.mark.parametrize("name", VARIANTS)
def test_48_foreign_data_is_refused_by_a_real_worker(gateway, tmp_path, name):
    """Every way to read what is no part of the package ends with the lint's code, in the worker."""
    folder = tmp_path / "package"
    hostile_models.lay_out(folder)
    model = VARIANTS[name].build(folder).SerializeToString()
    outcome = gateway.control.prove(described(folder, model))
    assert (outcome.ok, outcome.code) == (False, VARIANTS[name].code), outcome
    assert "before it is loaded" in outcome.message
    assert gateway.infer(fp32("x", [1] * 4, [1, 4]))[0] == 200


def test_48_the_runtime_is_never_asked(monkeypatch, tmp_path):
    """The lint comes first: a runtime that must not be opened is not."""
    folder = tmp_path / "package"
    hostile_models.lay_out(folder)

    class Untouchable:
        def open(self, *_):
            raise AssertionError("the runtime was asked")

    monkeypatch.setattr(compose, "runtime", lambda _: Untouchable())
    for hostile in VARIANTS.values():
        one = described(tmp_path, hostile.build(folder).SerializeToString())
        order = Order(one.spec, prove=True, threads=1, parent=os.getpid())
        found = opening.open_model(order, one.open())
        assert (found.report.code, found.session) == (hostile.code, None)


def test_48_a_hard_link_or_a_device_among_the_files_is_refused(gateway, tmp_path):
    """What the worker is given must be a plain file with one name, opened for reading."""
    good = package(tmp_path, linear(1.0))
    data = good.paths[0].read_bytes()
    other = tmp_path / "another-name"
    other.hardlink_to(good.paths[0])
    outcome = gateway.control.prove(good)
    assert (outcome.code, "another name" in outcome.message) == ("blob_corrupt", True)
    other.unlink()
    assert gateway.control.prove(good).ok
    good.paths[0].unlink()
    good.paths[0].symlink_to("/dev/zero")
    assert gateway.control.prove(good).code == "blob_corrupt"
    good.paths[0].unlink()
    good.paths[0].write_bytes(data)
    writable = os.open(good.paths[0], os.O_RDWR)
    outcome = gateway.control.ask(control.Prove, good.spec, files=[writable])
    assert (outcome.code, "for writing" in outcome.message) == ("blob_corrupt", True)


def test_48_a_hard_link_in_the_store_is_no_blob(tmp_path):
    """Another name for a blob is another way to write to it: the store lets go of it."""
    store, data = Store(tmp_path / "store", 1_000_000), b"weights"
    digest = sha256_digest(data)
    store.partial(digest).write_bytes(data)
    store.commit(digest)
    (tmp_path / "other").hardlink_to(store.path(digest))
    with pytest.raises(TrustError) as caught:
        store.open_verified(digest, len(data))
    assert caught.value.code == "blob_corrupt"
    assert not store.has(digest, len(data))


def test_48_the_field_numbers_are_those_of_onnx():
    """The walk has no schema of its own making: every number is the one in onnx.proto."""
    for message, names in {
        "ModelProto": lint.MODEL, "TrainingInfoProto": lint.TRAINING, "GraphProto": lint.GRAPH,
        "FunctionProto": lint.FUNCTION, "NodeProto": lint.NODE, "AttributeProto": lint.ATTRIBUTE,
        "SparseTensorProto": lint.SPARSE, "TensorProto": lint.TENSOR,
        "StringStringEntryProto": lint.ENTRY,
    }.items():  # fmt: skip
        known = {f.name: f.number for f in getattr(onnx_ml_pb2, message).DESCRIPTOR.fields}
        assert {name: known[name] for name in names} == names


def test_48_the_walk_misses_no_place_that_holds_tensors_nodes_or_graphs():
    """Each field of onnx.proto that leads to a tensor, node, graph or function is walked."""
    walked = {
        "ModelProto": lint.MODEL, "TrainingInfoProto": lint.TRAINING, "GraphProto": lint.GRAPH,
        "FunctionProto": lint.FUNCTION, "NodeProto": lint.NODE, "AttributeProto": lint.ATTRIBUTE,
        "SparseTensorProto": lint.SPARSE, "TensorProto": lint.TENSOR,
    }  # fmt: skip
    interesting = {f"onnx.{name}" for name in walked}
    messages = onnx_ml_pb2.DESCRIPTOR.message_types_by_name
    for name, message in messages.items():
        leads = {f.name for f in message.fields if f.message_type is not None
                 and f.message_type.full_name in interesting}  # fmt: skip
        assert leads <= set(walked.get(name, {})), name


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (bad.with_node("Odd", "evil.corp"), "op_domain"),
        (bad.with_node("EPContext", "com.microsoft"), "op_domain"),
        (bad.with_node("Snpe", "com.microsoft"), "op_domain"),
        (bad.with_node("PyOp", "pyopadd"), "op_domain"),
        (bad.with_function([bad.with_node("Odd", "evil").graph.node[1]]), "op_domain"),
        (bad.with_function([], domain="ai.onnx", name="Relu"), "bad_function"),
        (b"", "not_a_model"),
        (b"PK\x03\x04 a zip", "not_a_model"),
    ],
)
def test_49_foreign_operators_are_refused(gateway, tmp_path, model, code):
    """Domains and com.microsoft's operators are on a list, in functions and subgraphs too."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    outcome = gateway.control.prove(described(tmp_path, data))
    assert (outcome.ok, outcome.code) == (False, code), outcome


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


def alone(layer: str, name: str, target) -> str:
    """Attack from a process that one layer alone shuts in; the layer `none` is no layer."""
    code = (
        "import sys; from tests.adversarial.evil_runtime import ATTACKS, errno;"
        "from edgefleet_agent.worker import landlock, sandbox, seccomp;"
        "layer, name, target = sys.argv[1:];"
        "sandbox.prctl(38, 1);"
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


def test_53_filters_are_right_for_every_architecture_that_is_known():
    """Each jump stays inside its rule, and each number is the one in the kernel's headers."""
    for machine in ("x86_64", "aarch64"):
        arch = syscalls.architecture(machine)
        code = seccomp.program(arch, 4711, fatal=True)
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
