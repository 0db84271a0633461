"""The prepared form: loads fast, shares its weights, answers the same, and is never needed."""

from __future__ import annotations

import os
import threading
from importlib.metadata import version as library_version
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.ipc import control
from edgefleet_agent.journal import VersionRef
from edgefleet_agent.preparation import Prepared
from edgefleet_agent.store import hash_fd
from edgefleet_shared.package import TensorSpec
from tests.adversarial.device import Device
from tests.agent.gateways import Gateway, fp32
from tests.agent.world import World, until
from tests.models import Package, convolutions, linear, mlp, package

ROOM = 200 * 2**20
X = np.random.default_rng(5).standard_normal((1, 3, 64, 64)).astype(np.float32)


def ref(name: str = "a", variant: str = "cpu") -> VersionRef:
    """Return a version to be prepared."""
    digest = "sha256:" + name.encode().hex().rjust(64, "0")
    return VersionRef("digits", f"{name}.0", digest, 1, 1, variant)


def make(cache: Prepared, version: VersionRef, body: bytes) -> None:
    """Keep a form as if a worker had written it."""
    with cache.targets() as made:
        for fd, _ in made:
            os.write(fd, body + bytes([fd % 2]) + version.digest.encode())
        cache.keep(version, "onnxruntime 1", made)


def forms(folder: Path) -> list[Path]:
    """Return the files of forms in a cache's folder."""
    return [path for path in folder.iterdir() if path.name != "index.json"]


@pytest.fixture
def cache(tmp_path):
    """An empty cache."""
    return Prepared(tmp_path / "prepared", 10_000, "agent 1, onnxruntime 1")


def test_a_form_is_found_again_after_a_restart_and_hashed(cache, tmp_path):
    """What was kept is there for a new agentd; its descriptors are read-only."""
    make(cache, ref(), b"form")
    again = Prepared(tmp_path / "prepared", 10_000, "agent 1, onnxruntime 1")
    assert not again.lacks(ref())
    with again.opened(ref()) as found:
        form, fds = found
        assert [hash_fd(fd) for fd in fds] == [file.digest for file in form.files]
        assert len(fds) == control.PREPARED_FILES
        with pytest.raises(OSError, match="Bad file"):
            os.write(fds[0], b"x")


def test_other_software_drivers_or_processors_find_no_form(cache, tmp_path):
    """What is not made by the same is not there, and its files go."""
    make(cache, ref(), b"form")
    again = Prepared(tmp_path / "prepared", 10_000, "agent 1, onnxruntime 2")
    assert again.lacks(ref())
    assert forms(tmp_path / "prepared") == []


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index"])
def test_a_damaged_form_is_no_form(cache, tmp_path, damage):
    """A flipped bit, a cut file, a lost one or a torn index: made again, and never an error."""
    make(cache, ref(), b"form")
    victim = max(forms(tmp_path / "prepared"))
    victim.chmod(0o600)
    if damage == "flip":
        victim.write_bytes(b"F" + victim.read_bytes()[1:])
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "gone":
        victim.unlink()
    else:
        (tmp_path / "prepared" / "index.json").write_bytes(b"{")
    again = Prepared(tmp_path / "prepared", 10_000, "agent 1, onnxruntime 1")
    with again.opened(ref()) as found:
        assert found is None
    assert again.lacks(ref())
    assert forms(tmp_path / "prepared") == []


def test_power_lost_while_a_form_is_written_leaves_nothing(cache, tmp_path):
    """Neither a half-written file nor one that the index does not name survives a start."""
    folder = tmp_path / "prepared"
    (folder / ".form.abcd1234").write_bytes(b"half")
    (folder / ("0" * 64)).write_bytes(b"whole, and not in the index")
    Prepared(folder, 10_000, "agent 1, onnxruntime 1")
    assert forms(folder) == []


def test_the_least_recently_used_form_goes_and_never_one_that_is_needed(cache, tmp_path):
    """Room is made by turns; what is active or stands by stays, also where that leaves none."""
    for name in "abc":
        make(cache, ref(name), b"x" * 1000)
    cache.used(ref("a"))
    assert cache.room(3000, {ref("b").digest}) >= 3000
    assert [cache.lacks(ref(name)) for name in "abc"] == [False, False, False]
    assert cache.room(5000, {ref("b").digest}) >= 5000
    assert [cache.lacks(ref(name)) for name in "abc"] == [False, False, True]
    assert cache.room(20_000, {ref(name).digest for name in "ab"}) < 6000
    assert [cache.lacks(ref(name)) for name in "ab"] == [False, False]


def test_a_cache_of_no_bytes_prepares_nothing(tmp_path):
    """`store.prepared_max_bytes = 0` switches it off."""
    assert not Prepared(tmp_path / "prepared", 0, "agent 1").lacks(ref())


class Maker:
    """Prepares packages by a real gateway into a folder."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.gateway, self.folder = gateway, folder

    def prepare(self, one: Package, room: int = ROOM) -> control.Outcome:
        """Prepare a package into files `0` and `1`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        made = [os.open(self.folder / str(n), flags) for n in range(control.PREPARED_FILES)]
        return self.gateway.control.ask(control.Prepare, one.spec, room, files=[*one.open(), *made])

    def load(self, one: Package, maker: str) -> control.Outcome:
        """Load a package with the form that was made last, and route to it."""
        fds = [os.open(self.folder / str(n), os.O_RDONLY) for n in range(control.PREPARED_FILES)]
        files = [control.PreparedFile(hash_fd(fd), os.fstat(fd).st_size) for fd in fds]
        spec = msgspec.structs.replace(one.spec, prepared=control.PreparedForm(maker, files))
        outcome = self.gateway.control.ask(control.Load, spec, files=[*one.open(), *fds])
        self.gateway.control.ask(control.Flip, spec.model, spec.digest)
        return outcome


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """A gateway and a folder."""
    gateway = Gateway()
    yield Maker(gateway, tmp_path_factory.mktemp("forms"))
    gateway.close()


def answer(gateway: Gateway, model: str) -> bytes:
    """Return the raw output for `X`."""
    connection = gateway.connect()
    head = {"Inference-Header-Content-Length": "0"}
    connection.request("POST", f"/v2/models/{model}/infer", X.tobytes(), head)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    return body[int(response.headers["Inference-Header-Content-Length"]) :]


def test_a_prepared_model_loads_with_less_memory_and_answers_bit_for_bit(maker, tmp_path):
    """Its weights stay in the file and count as nobody's: a third of the peak, the same answer."""
    one = package(tmp_path, convolutions(), name="cnn", version="1.0.0")
    plain = maker.gateway.control.load(one)
    assert plain.ok, plain
    maker.gateway.control.ask(control.Flip, "cnn", one.spec.digest)
    before = answer(maker.gateway, "cnn")
    made = maker.prepare(one)
    assert made.ok, made
    two = package(tmp_path, convolutions(), name="cnn", version="2.0.0")
    loaded = maker.load(two, made.maker)
    assert (loaded.ok, loaded.prepared, loaded.note) == (True, True, "")
    assert answer(maker.gateway, "cnn") == before
    assert loaded.peak_kb < plain.peak_kb / 3
    weights_kb = max((maker.folder / str(n)).stat().st_size for n in range(2)) // 1024
    assert loaded.memory_kb < plain.memory_kb - weights_kb // 2


@pytest.mark.parametrize("how", ["maker", "garbage", "empty", "foreign"])
def test_a_form_that_cannot_be_used_costs_nothing_but_time(maker, tmp_path, how):
    """Of another runtime, garbage, empty or of another model: the package itself is loaded."""
    one = package(tmp_path, linear(2.0), name=f"m-{how}")
    for number in range(control.PREPARED_FILES):
        (maker.folder / str(number)).write_bytes(
            {"garbage": b"\xff" * 5000, "empty": b"", "foreign": mlp()}.get(how, b"x")
        )
    name = "onnxruntime 0.1" if how == "maker" else f"onnxruntime {library_version('onnxruntime')}"
    loaded = maker.load(one, name)
    assert (loaded.ok, loaded.prepared) == (True, False)
    assert "prepared form" in loaded.note
    status, body, _ = maker.gateway.infer(fp32("x", [1] * 4, [1, 4]), f"m-{how}")
    assert (status, body["outputs"][0]["data"]) == (200, [8.0, 8.0])


def test_a_tiny_model_is_not_prepared(maker, tmp_path):
    """It loads in a moment as it is."""
    assert maker.prepare(package(tmp_path, mlp())).code == "does_not_pay"


def test_a_form_longer_than_its_room_is_not_made(maker, tmp_path):
    """The kernel stops the writer at the limit, and nothing but the form is lost."""
    outcome = maker.prepare(package(tmp_path, convolutions(), name="cnn"), room=2**20)
    assert not outcome.ok
    assert outcome.code in {"prepare_failed", "crashed"}, outcome
    assert max(path.stat().st_size for path in maker.folder.iterdir()) <= 2**20


def test_preparing_ends_when_it_is_told_to(maker, tmp_path):
    """A newer assignment does not wait for an older one's preparation."""
    one = package(tmp_path, convolutions(), name="cnn")
    client = GatewayClient(maker.gateway.run / "control.sock", lambda _: None)
    stop = threading.Event()
    stop.set()
    made = [os.open(maker.folder / str(n), os.O_RDWR | os.O_CREAT) for n in range(2)]
    fds = [*one.open(), *made]
    assert client.prepare(one.spec, fds, ROOM, stop).code == "canceled"
    assert client.prove(one.spec, fds[:-2], stop=stop).code == "canceled"
    client.close()
    for fd in fds:
        os.close(fd)


@pytest.fixture
def device():
    """An agent with a real gateway, which serves nothing yet."""
    world = World()
    device = Device(world).start()
    yield device
    device.close()
    world.close()


def with_signature(manifest):
    """Describe the model that `convolutions` makes."""
    variant = msgspec.structs.replace(
        manifest.variants[0],
        inputs=[TensorSpec("x", "FP32", [-1, 3, 64, 64])],
        outputs=[TensorSpec("y", "FP32", [-1, 256])],
    )
    return msgspec.structs.replace(manifest, variants=[variant])


def told(device, code: str) -> int:
    """Return how many events of a code have come."""
    return sum(event["code"] == code for event in device.transport.items("events"))


def test_a_device_prepares_uses_it_after_a_reboot_and_makes_a_damaged_one_again(device):
    """Prepared before it serves; after a restart the form is used; a flipped bit costs a remake."""
    slot = device.world.publish("1.0.0", body=convolutions(), change=with_signature)
    device.assign(slot)
    until(lambda: device.ended(slot) == "succeeded", f"success; {device.transport.reported[-1:]}")
    folder = device.config.state / "prepared"
    assert told(device, "prepared") == 1
    assert len(forms(folder)) == control.PREPARED_FILES
    measured = (device.config.state / "measured.json").read_text()
    assert "plain" in measured
    assert "prepared" in measured
    device.stop()
    victim = max(forms(folder), key=lambda path: path.stat().st_size)
    victim.chmod(0o600)
    with victim.open("r+b") as file:
        file.write(b"\xff" * 64)
    device.start()
    until(lambda: told(device, "prepared") == 1, "the form is made again")
    until(lambda: len(forms(folder)) == control.PREPARED_FILES)
    assert device.transport.slot("digits")["active"] == slot.manifest
