"""One model of a real device goes from ONNX to TFLite and back while applications ask."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest

from edgefleet_shared.package import FileEntry, Golden, RuntimeNeed
from tests import tflite_models as light
from tests.adversarial.device import Device, with_files
from tests.agent.world import World, until
from tests.models import golden_bytes, linear


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def device(world):
    """A device with a real gateway that serves version 1.0.0, ONNX, times two."""
    device = Device(world).start()
    device.one = device.serve()
    yield device
    device.close()


def tflite(world, answer: float):
    """Return a change that makes a TFLite package of it, with golden vectors for four ones."""
    golden = golden_bytes(
        [({"x": np.ones((1, 4), np.float32)}, {"y": np.full((1, 2), answer, np.float32)})]
    )
    add = with_files(world, {"golden.safetensors": (golden, "golden")})

    def change(manifest):
        manifest = add(manifest)
        variant = manifest.variants[0]
        model, *rest = variant.files
        model = FileEntry("model.tflite", model.digest, model.size, "tflite")
        variant = msgspec.structs.replace(
            variant, files=[model, *rest], runtime=RuntimeNeed("litert"),
            golden=Golden("golden.safetensors", 1), session_options={"num_threads": 1},
        )  # fmt: skip
        return msgspec.structs.replace(manifest, variants=[variant])

    return change


class Clients:
    """Two applications that ask four ones without a pause."""

    def __init__(self, device) -> None:
        self.device, self.answers, self.ended = device, [], threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def ask(self) -> None:
        while not self.ended.is_set():
            self.answers.append(self.device.answers())

    def stop(self) -> list:
        self.ended.set()
        for thread in self.threads:
            thread.join(20)
        return self.answers


def rolled_out(world, device, version: str, body: bytes, **more):
    """Roll a version out and wait until it has succeeded."""
    slot = world.publish(version, body=body, **more)
    device.assign(slot)
    until(lambda: device.ended(slot) == "succeeded", f"success; {device.transport.slot('digits')}")
    return slot


def test_no_request_fails_while_the_runtime_changes(world, device):
    """ONNX, TFLite, ONNX, TFLite: every answer is right for one of the versions, none is lost."""
    clients = Clients(device)
    try:
        for version, body, answer, more in (
            ("2.0.0", light.linear(3.0), 12, {"change": tflite(world, 12)}),
            ("3.0.0", linear(5.0), 20, {}),
            ("4.0.0", light.linear(7.0), 28, {"change": tflite(world, 28)}),
        ):
            rolled_out(world, device, version, body, **more)
            assert device.answers() == answer
    finally:
        answers = clients.stop()
    assert set(answers) == {8.0, 12.0, 20.0, 28.0}
    assert (answers[0], len(answers) > 20) == (8.0, True)


def test_a_tflite_model_that_answers_otherwise_is_not_activated(world, device):
    """Wrong golden vectors, a mutant and a custom operator: the ONNX version goes on serving."""
    wrong = world.publish("2.0.0", body=light.linear(3.0), change=tflite(world, 13))
    device.assign(wrong)
    assert device.fails(wrong)["reason"] == "golden_mismatch"
    cut = world.publish("3.0.0", body=light.linear(3.0)[:400], change=tflite(world, 12))
    device.assign(cut)
    assert device.fails(cut)["reason"] == "not_a_model"
    model = light.unpack(light.linear(3.0))
    model.operatorCodes[0].builtinCode = light.s.BuiltinOperator.CUSTOM
    model.operatorCodes[0].customCode = "FlexMatMul"
    flex = world.publish("4.0.0", body=light.pack(model), change=tflite(world, 12))
    device.assign(flex)
    report = device.fails(flex)
    assert (report["reason"], "FlexMatMul" in report["detail"]) == ("op_domain", True)
    assert device.answers() == 8.0


def test_bytes_that_changed_on_the_way_are_refused_before_anything_reads_them(world, device):
    """A mutant under the signed digest is no blob: the server's bytes are refused by their hash."""
    slot = world.publish("2.0.0", body=light.linear(3.0), change=tflite(world, 12))
    body = light.linear(3.0)
    (digest,) = [name for name, data in world.blobs.items() if data == body]
    mutant = bytearray(body)
    mutant[-20] ^= 1
    world.blobs[digest] = bytes(mutant)
    device.assign(slot)
    until(
        lambda: any(
            event["code"] == "digest_mismatch" for event in device.transport.items("events")
        ),
        "an event that tells of the digest",
    )
    assert device.answers() == 8.0
    world.blobs[digest] = body  # the right bytes come after all
    until(lambda: device.ended(slot) == "succeeded", "success", 40)
    assert device.answers() == 12.0
