"""What a gateway answers on its control socket; run over the fake and the real one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from edgefleet_agent.gateway_client import GatewayClient, GatewayLostError, GatewayRefusedError
from edgefleet_agent.ipc import control
from tests import models
from tests.agent.gateways import Gateway
from tests.agent.world import until
from tests.fakes.fake_gateway import FakeGateway


@pytest.fixture(scope="module", params=["fake", "real"])
def run(request) -> Iterator[Path]:
    """The run folder of each gateway."""
    if request.param == "real":
        real = Gateway()
        until((real.run / "control.sock").exists, "the control socket")
        yield real.run
        real.close()
        return
    folder = Path(tempfile.mkdtemp(prefix="ef", dir="/tmp"))
    fake = FakeGateway(folder)
    yield folder
    fake.close()
    shutil.rmtree(folder)


class Asked:
    """A connection and two packages of one model, opened for each request anew."""

    def __init__(self, run: Path, one: models.Package, two: models.Package) -> None:
        self.events: list[control.Event] = []
        self.client = GatewayClient(run / "control.sock", self.events.append)
        self.run, self.one, self.two = run, one, two

    def with_files(self, ask, package: models.Package):
        """Ask with the package's descriptors, and close ours after."""
        fds = package.open()
        try:
            return ask(package.spec, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def roles(self) -> dict[str, str]:
        """Return digest to role of our model."""
        stats = self.client.stats()
        mine = [s for s in stats if s.model == self.one.spec.model]
        return {s.digest: s.role for s in mine if s.role != "released"}


@pytest.fixture
def asked(run, tmp_path) -> Iterator[Asked]:
    """A fresh connection; nothing of our model is loaded, before or after."""
    one = models.package(tmp_path, models.linear(1.0), version="1.0.0")
    two = models.package(tmp_path, models.linear(2.0), version="2.0.0")
    asked = Asked(run, one, two)
    yield asked
    client = GatewayClient(run / "control.sock", lambda _: None)
    client.unroute(one.spec.model)
    for package in (one, two):
        client.release(package.spec.digest, 0)
    until(lambda: {s.role for s in client.stats()} <= {"released"}, "released")
    client.close()
    asked.client.close()


def test_hello_tells_who_it_is_and_what_runs(asked):
    """The boot id is the same for everyone who asks the same gateway."""
    asked.with_files(asked.client.load, asked.one)
    other = GatewayClient(asked.run / "control.sock", lambda _: None)
    try:
        assert other.state.boot == asked.client.state.boot != ""
        assert other.state.pid > 0
        assert [w.digest for w in other.state.workers] == [asked.one.spec.digest]
        assert other.state.workers[0].role == "idle"
    finally:
        other.close()


def test_prove_says_yes_and_leaves_nothing_behind(asked):
    """A proof ends with an outcome and no worker."""
    outcome = asked.with_files(asked.client.prove, asked.one)
    assert outcome.ok, outcome
    assert asked.roles() == {}


def test_load_flip_and_flip_back(asked):
    """The old version becomes the standby, and the other way round."""
    one, two = asked.one.spec, asked.two.spec
    assert asked.with_files(asked.client.load, asked.one).ok
    assert asked.client.flip(one.model, one.digest).previous == ""
    assert asked.with_files(asked.client.load, asked.two).ok
    assert asked.roles() == {one.digest: "active", two.digest: "idle"}
    assert asked.client.flip(one.model, two.digest).previous == one.digest
    assert asked.roles() == {one.digest: "standby", two.digest: "active"}
    assert asked.client.flip(one.model, one.digest).previous == two.digest
    assert asked.roles() == {one.digest: "active", two.digest: "standby"}


def test_loading_what_is_loaded_succeeds_and_changes_nothing(asked):
    """Load is idempotent, for an agentd that does not know what it had asked for."""
    one = asked.one.spec
    asked.with_files(asked.client.load, asked.one)
    asked.client.flip(one.model, one.digest)
    assert asked.with_files(asked.client.load, asked.one).ok
    assert asked.roles() == {one.digest: "active"}


def test_a_flip_to_what_is_not_loaded_is_refused(asked):
    """The route stands where it stood."""
    one, two = asked.one.spec, asked.two.spec
    asked.with_files(asked.client.load, asked.one)
    asked.client.flip(one.model, one.digest)
    with pytest.raises(GatewayRefusedError):
        asked.client.flip(one.model, two.digest)
    assert asked.roles() == {one.digest: "active"}


def test_the_active_version_is_not_released(asked):
    """Release is refused by code `active`; a standby goes."""
    one, two = asked.one.spec, asked.two.spec
    for package in (asked.one, asked.two):
        asked.with_files(asked.client.load, package)
        asked.client.flip(one.model, package.spec.digest)
    refused = asked.client.release(two.digest, 0)
    assert (refused.ok, refused.code) == (False, "active")
    assert asked.client.release(one.digest, 0).ok
    until(lambda: asked.roles() == {two.digest: "active"}, "released")


def test_unroute_ends_serving(asked):
    """After it no digest of the model is active, and none comes back by itself."""
    one = asked.one.spec
    asked.with_files(asked.client.load, asked.one)
    asked.client.flip(one.model, one.digest)
    assert asked.client.unroute(one.model).ok
    until(lambda: "active" not in asked.roles().values(), "unrouted")


def test_descriptors_that_do_not_fit_the_files_are_refused(asked):
    """A request whose descriptors do not match its files is an outcome, not a crash."""
    outcome = asked.client.load(asked.one.spec, [])
    assert (outcome.ok, outcome.code) == (False, "load_failed")
    assert asked.with_files(asked.client.prove, asked.one).ok


def test_many_requests_on_one_connection_get_their_own_replies(asked):
    """Ids are what pairs them; a slow request does not hold up a quick one."""
    with ThreadPoolExecutor(8) as pool:
        proof = pool.submit(asked.with_files, asked.client.prove, asked.one)
        for reply in [pool.submit(asked.client.stats) for _ in range(50)]:
            assert isinstance(reply.result(), list)
        assert proof.result().ok


def test_a_message_that_is_none_ends_the_connection_alone(asked):
    """Foreign bytes close the connection they came on; the gateway serves everyone else."""
    other = GatewayClient(asked.run / "control.sock", lambda _: None)
    other._socket.send(msgspec.msgpack.encode({"type": "Nonsense"}))
    assert other.closed.wait(5)
    with pytest.raises(GatewayLostError):
        other.stats()
    assert asked.roles() == {}


def test_a_gateway_outlives_whoever_asked(asked):
    """A connection that ends, even in the middle, leaves what is loaded."""
    one = asked.one.spec
    asked.with_files(asked.client.load, asked.one)
    asked.client.flip(one.model, one.digest)
    asked.client.close()
    again = GatewayClient(asked.run / "control.sock", lambda _: None)
    assert [(w.digest, w.role) for w in again.state.workers] == [(one.digest, "active")]
    again.close()


def test_nobody_there_is_said_at_once(tmp_path):
    """Without a socket there is no gateway, and no waiting for one."""
    with pytest.raises(GatewayLostError):
        GatewayClient(tmp_path / "control.sock", lambda _: None)


def test_hold_ends_the_workers_and_keeps_the_route_for_the_next_flip(asked):
    """Nothing of the model is loaded then; another version takes its place, or the same again."""
    one, two = asked.one.spec, asked.two.spec
    asked.with_files(asked.client.load, asked.one)
    asked.client.flip(one.model, one.digest)
    assert asked.client.hold(one.model, 1).ok
    assert asked.roles() == {}
    assert asked.with_files(asked.client.load, asked.two).ok
    assert asked.client.flip(two.model, two.digest).previous == ""
    assert asked.roles() == {two.digest: "active"}
    assert asked.client.hold("nobody", 1).ok


def test_a_share_needs_a_loaded_version_that_is_not_active(asked):
    """Half for the one beside it is taken and given back; what is active or unknown gets none."""
    client, one, two = asked.client, asked.one.spec, asked.two.spec
    assert asked.with_files(client.load, asked.one).ok
    client.flip(one.model, one.digest)
    with pytest.raises(GatewayRefusedError) as refused:
        client.canary(one.model, two.digest, 50, 10)
    assert refused.value.code == "not_loaded"
    with pytest.raises(GatewayRefusedError) as refused:
        client.canary(one.model, one.digest, 50, 10)
    assert refused.value.code == "active"
    assert asked.with_files(client.load, asked.two).ok
    client.canary(one.model, two.digest, 50, 10)
    assert asked.roles() == {one.digest: "active", two.digest: "idle"}
    client.canary(one.model, "", 0, 10)


def test_a_shadow_needs_a_loaded_version_that_is_not_active(asked):
    """What it has shown so far comes back; nothing yet, where nobody asked."""
    client, one, two = asked.client, asked.one.spec, asked.two.spec
    assert asked.with_files(client.load, asked.one).ok
    client.flip(one.model, one.digest)
    for digest, code in ((two.digest, "not_loaded"), (one.digest, "active")):
        with pytest.raises(GatewayRefusedError) as refused:
            client.shadow(one.model, digest, 50, 10)
        assert refused.value.code == code
    assert asked.with_files(client.load, asked.two).ok
    shown = client.shadow(one.model, two.digest, 50, 10)
    assert (shown.requests, shown.compared, shown.dropped) == (0, 0, 0)
    client.canary(one.model, "", 0, 10)
