"""Section F: models that attack whoever loads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import onnx_ml_pb2

from edgefleet_agent.ipc import control
from edgefleet_agent.ipc.frames import Order
from edgefleet_agent.quarantine import KEPT, PROOFS_MAX, after_failure, barred
from edgefleet_agent.store import Store
from edgefleet_agent.worker import compose, lint, opening
from edgefleet_shared.errors import InvalidInputError, TrustError
from edgefleet_shared.identifiers import new_id, sha256_digest
from edgefleet_shared.package import Golden, Limits, decode_manifest
from tests.adversarial import hostile_models
from tests.adversarial.device import Device, with_files
from tests.adversarial.hostile_models import VARIANTS
from tests.adversarial.manifests import manifest_with
from tests.agent.gateways import Gateway, fp32
from tests.agent.world import World, until
from tests.models import Package, golden_bytes, linear, package
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


def test_49_code_cannot_be_expressed_in_a_manifest():
    """A shared object, a script, a pickle, an object array: there is no role that takes them."""
    for path in ("evil.so", "a/run.py", "weights.PKL", "x.npy", "all.tar", "model.pt", "x.so.zip"):
        with pytest.raises(InvalidInputError) as caught:
            decode_manifest(manifest_with("model.onnx", path))
        assert caught.value.code == "manifest_code", path
    for role in ("so", "py", "pickle", "npy", "code", "script", "library", "archive", "tar"):
        data = manifest_with("evil").replace(b'"onnx"', json.dumps(role).encode())
        with pytest.raises(InvalidInputError):
            decode_manifest(data)
    for option in ("register_custom_ops_library", "session.load_model_format", "profile_file"):
        variant = b'"accelerator": "cpu", "session_options": {"%s": 1}' % option.encode()
        data = manifest_with("model.onnx").replace(b'"accelerator": "cpu"', variant)
        with pytest.raises(InvalidInputError) as caught:
            decode_manifest(data)
        assert caught.value.code == "manifest_session_option"


def memory_kb(pid: int | str) -> int:
    """Return a process's resident memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def quick(manifest):
    """Give a package two seconds and 256 MB."""
    variant = manifest.variants[0]
    variant = msgspec.structs.replace(variant, limits=Limits(memory_mb=256, load_s=2))
    return msgspec.structs.replace(manifest, variants=[variant])


BOMBS = {
    "3 GiB": (hostile_models.huge(3 * 2**28), {"out_of_memory"}),
    "1 TiB": (hostile_models.huge(2**38), {"out_of_memory"}),
    "shape lies": (hostile_models.lying([2**20, 2**20]), {"load_failed", "out_of_memory"}),
    "shape overflows": (hostile_models.lying([2**32, 2**32]), {"load_failed", "out_of_memory"}),
    "endless loop": (hostile_models.spinning(), {"load_timeout"}),
}


def test_50_bombs_end_the_canary_and_nothing_else(world, device):
    """Memory, time and lying shapes: the limits end the proving process; all else is as before."""
    pid = device.daemon.gateway().state.pid
    before = memory_kb(pid), memory_kb("self")
    for number, (name, (model, codes)) in enumerate(BOMBS.items(), 2):
        slot = world.publish(f"{number}.0.0", body=model.SerializeToString(), change=quick)
        device.assign(slot)
        report = device.fails(slot)
        assert (report["state"], report["reason"] in codes) == ("failed", True), (name, report)
        assert device.answers() == 8.0, name
        assert device.daemon.gateway().state.pid == pid
    assert memory_kb(pid) - before[0] < 8_000
    assert memory_kb("self") - before[1] < 40_000  # agentd, and the test that it runs in


def again(slot):
    """Return the same version under a deployment of its own, as an operator orders it anew."""
    return msgspec.structs.replace(slot, deployment=new_id())


def proofs(device) -> int:
    """Return how often the device has begun to prove something."""
    return sum(event["code"] == "preparing" for event in device.transport.items("events"))


def test_50_a_digest_that_keeps_failing_is_quarantined(world, device):
    """Three signed orders are three proofs; the fourth is rejected without one."""
    slot = world.publish("2.0.0", body=BOMBS["1 TiB"][0].SerializeToString(), change=quick)
    for _ in range(PROOFS_MAX):
        slot = again(slot)
        device.assign(slot)
        assert device.fails(slot)["reason"] == "out_of_memory"
    begun = until(lambda: proofs(device) == 1 + PROOFS_MAX and proofs(device))
    slot = again(slot)
    device.assign(slot)
    report = device.fails(slot)
    assert (report["state"], report["reason"]) == ("rejected", "quarantined")
    assert "out_of_memory" in report["detail"]
    assert proofs(device) == begun
    assert device.answers() == 8.0
    device.serve("3.0.0", 3.0)  # another digest is not held responsible


def test_51_a_tflite_file_that_is_none_is_refused(gateway, tmp_path):
    """An identifier and rubbish behind it are no model, and end nothing but the process."""
    one = described(tmp_path, b"\x1c\0\0\0TFL3" + bytes(64))
    entry = msgspec.structs.replace(one.spec.files[0], path="model.tflite", role="tflite")
    spec = msgspec.structs.replace(one.spec, files=[entry], runtime="litert")
    outcome = gateway.control.prove(Package(spec, one.paths))
    assert (outcome.ok, outcome.code) == (False, "not_a_model")


def with_golden(world, scale: float):
    """Return a change that adds golden vectors: four ones give four times the scale, twice."""
    x = np.ones((1, 4), np.float32)
    data = golden_bytes([({"x": x}, {"y": np.full((1, 2), 4 * scale, np.float32)})])
    add = with_files(world, {"golden.safetensors": (data, "golden")})

    def change(manifest):
        manifest = add(manifest)
        variant = manifest.variants[0]
        variant = msgspec.structs.replace(variant, golden=Golden("golden.safetensors", 1))
        return msgspec.structs.replace(manifest, variants=[variant])

    return change


def test_52_golden_vectors_that_differ_or_are_not_numbers_bar_a_digest_at_once(world, device):
    """It loads and answers wrongly, or with NaN: not activated, and never tried again."""
    cases = {"2.0.0": linear(3.0), "3.0.0": linear(float("nan")), "4.0.0": linear(float("inf"))}
    for version, body in cases.items():
        slot = world.publish(version, body=body, change=with_golden(world, 2.0))
        device.assign(slot)
        report = device.fails(slot)
        assert (report["state"], report["reason"]) == ("failed", "golden_mismatch"), version
        assert device.answers() == 8.0
        begun = proofs(device)
        for _ in range(3):
            device.assign(slot)  # the same deployment in newer assignments
            order = again(slot)
            device.assign(order)
            assert device.fails(order)["reason"] == "quarantined"
        assert proofs(device) == begun
    good = world.publish("5.0.0", body=linear(2.0), change=with_golden(world, 2.0))
    device.assign(good)
    until(lambda: device.ended(good) == "succeeded")


def test_52_a_quarantine_ends_with_another_runtime():
    """What is held against a digest is held under the software that found it; the list is short."""
    known = after_failure({}, "a", "golden_mismatch", "onnxruntime 1")
    assert barred(known, "a", "onnxruntime 1")
    assert barred(known, "a", "onnxruntime 2") is None
    known = after_failure(known, "a", "crashed", "onnxruntime 2")
    assert (known["a"].proofs, barred(known, "a", "onnxruntime 2")) == (1, None)
    for count in range(2 * KEPT):
        known = after_failure(known, f"b{count}", "crashed", "onnxruntime 2")
    assert len(known) == KEPT
    assert after_failure({}, "a", "unsupported_runtime", "x") == {}
