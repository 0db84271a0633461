"""Renewal on the device: one switch, whatever fails; the director's word and nobody else's."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import SSlibKey

from edgefleet_agent import config, durable, rekeying, renewal
from edgefleet_agent.identity import Identity, key_digest
from edgefleet_agent.renewer import Renewer
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_shared import bundle, dsse, strict_json
from edgefleet_shared.errors import EdgeFleetError, TrustError, UnavailableError
from edgefleet_shared.renewal import (
    ANSWER_TYPE,
    REQUEST_TYPE,
    Renewal,
    RenewAsk,
    Renewed,
    open_request,
)
from tests.agent.world import World, certificate, until


class Manager:
    """The renewing end of a fleet manager; `spoil` changes its answers, `fail` is a status."""

    def __init__(self, world: World) -> None:
        self.world, self.ca = world, ec.generate_private_key(ec.SECP256R1())
        self.keys: list[SSlibKey] = []
        self.asked: list[bytes] = []
        self.spoil: dict[str, object] = {}
        self.signer, self.fail = "director", 0
        manager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = manager.answer(json.loads(body))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, body: dict[str, str]) -> tuple[int, dict[str, str]]:
        """Sign what was asked, if the key that it was told signed the request."""
        sealed = base64.b64decode(body["request"])
        self.asked.append(sealed)
        if self.fail:
            return self.fail, {"detail": "No.", "code": "revoked", "hint": "Enrol."}
        request = self.open(sealed, body["device"])
        csr = x509.load_pem_x509_csr(request.csr.encode())
        self.keys.append(SSlibKey.from_crypto(csr.public_key()))
        made = certificate(csr, request.device, self.ca)
        fields = {
            "v": 1, "fleet": "demo", "device": request.device, "key": key_digest(csr),
            "nonce": request.nonce, "ts": request.ts, "certificate": made,
            "ca": certificate(self.ca, "CA", self.ca),
        } | self.spoil  # fmt: skip
        answer = dsse.seal(
            strict_json.encode(Renewed(**fields)), ANSWER_TYPE, self.world.keys[self.signer]
        )
        packed = bundle.encode(self.world.files)
        return 200, {
            "renewed": base64.b64encode(answer).decode(),
            "bundle": base64.b64encode(packed).decode(),
        }

    def open(self, sealed: bytes, device: str) -> Renewal:
        """Return the request that one of the last two keys has signed."""
        for key in self.keys[-2:]:
            with contextlib.suppress(TrustError):
                return open_request(sealed, key, "demo", device)
        raise AssertionError("neither key signed this")

    def close(self) -> None:
        """Stop."""
        self._http.shutdown()
        self._http.server_close()


class Device:
    """An enrolled device's folder, and the steps of a renewal over it."""

    def __init__(self, world: World, manager: Manager, state) -> None:
        identity = world.enrolled(state)
        api = msgspec.structs.replace(identity.enrollment, api=manager.url)
        (identity.folder / "enrollment.json").write_bytes(strict_json.encode(api))
        manager.keys = [identity.signer.public_key]
        self.state = state
        self.first = identity.who.key

    def start(self) -> tuple[Identity, Acceptance]:
        """Return what a starting agentd has."""
        identity = Identity(self.state / "identity")
        who, root = identity.who, identity.root
        return identity, Acceptance(self.state, who, "generic-x86_64", root, time.time)

    def renew(self) -> Identity:
        """Do all three steps."""
        identity, acceptance = self.start()
        begun = renewal.begin(identity, acceptance)
        renewal.install(identity, acceptance, begun, renewal.ask(identity, begun))
        return identity

    def fits(self) -> str:
        """Return the digest of the key, after checking that key and certificate are of one kind."""
        identity, _ = self.start()
        assert key_digest(identity.certificate()) == identity.who.key
        return identity.who.key


@pytest.fixture
def world():
    """Keys and trust metadata of a fleet."""
    made = World()
    yield made
    made.close()


@pytest.fixture
def manager(world):
    """Who answers."""
    made = Manager(world)
    yield made
    made.close()


@pytest.fixture
def device(world, manager, tmp_path):
    """A device that was enrolled a moment ago."""
    return Device(world, manager, tmp_path / "state")


def test_key_certificate_and_authorities_change_together(device, manager):
    """The old key signs for the new one, which signs everything from then on."""
    identity = device.renew()
    assert device.fits() == identity.who.key != device.first
    assert identity.signer.public_key == manager.keys[-1]
    assert b"BEGIN CERT" in identity.ca_file.read_bytes()
    assert identity.key_file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in identity.folder.glob("rene*")] == []


def test_a_lost_answer_is_asked_for_by_the_same_bytes(device, manager):
    """After a crash between question and answer the very same request goes out again."""
    identity, acceptance = device.start()
    renewal.ask(identity, renewal.begin(identity, acceptance))  # and the power fails
    assert device.fits() == device.first
    device.renew()
    assert manager.asked[0] == manager.asked[1]


class _PowerCut(BaseException):
    """Not an exception that anything may handle."""


@pytest.mark.parametrize("step", range(1, 12))
def test_power_may_fail_at_every_write(device, manager, monkeypatch, step):
    """Cut off before the n-th change of the disk: old xor new, and the next try completes it."""
    left = [step]

    def cut(real):
        def call(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                raise _PowerCut
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("atomic_write", "fsync_folder"):
            patch.setattr(durable, name, cut(getattr(durable, name)))
        try:
            device.renew()
            done = True
        except _PowerCut:
            done = False
    found = device.fits()
    if not done and found == device.first:
        assert device.renew().who.key != device.first
        assert len(set(manager.asked)) == 1
    assert device.fits() != device.first


@pytest.mark.parametrize(
    ("spoil", "signer", "code"),
    [
        ({}, "snapshot", "signature"),
        ({}, "stranger", "signature"),
        ({"nonce": "another"}, "director", "wrong_answer"),
        ({"device": "cam-2"}, "director", "wrong_answer"),
        ({"key": "sha256:" + "0" * 64}, "director", "wrong_answer"),
        ({"certificate": "none"}, "director", "malformed"),
        ({"ca": "none"}, "director", "malformed"),
    ],
)
def test_an_answer_that_does_not_hold_changes_nothing(device, manager, spoil, signer, code):
    """Whoever sits on the way, or has the server without its director, installs no certificate."""
    manager.spoil, manager.signer = spoil, signer
    with pytest.raises(EdgeFleetError) as caught:
        device.renew()
    assert caught.value.code == code
    assert device.fits() == device.first
    manager.spoil, manager.signer = {}, "director"
    assert device.renew().who.key != device.first


def test_a_certificate_for_another_key_or_name_is_refused(device, manager):
    """Even signed by the director."""
    stranger = ec.generate_private_key(ec.SECP256R1())
    manager.spoil = {"certificate": certificate(stranger, "cam-1", manager.ca)}
    with pytest.raises(TrustError) as caught:
        device.renew()
    assert caught.value.code == "wrong_key"
    begun = rekeying.pending(device.state / "identity")
    key = x509.load_pem_x509_csr(_request(begun).csr.encode())
    manager.spoil = {"certificate": certificate(key, "cam-2", manager.ca)}
    with pytest.raises(TrustError) as caught:
        device.renew()
    assert caught.value.code == "wrong_device"
    assert device.fits() == device.first


def _request(begun):
    envelope = dsse.read(base64.b64decode(begun.sealed), REQUEST_TYPE)
    return strict_json.decode(envelope.payload, Renewal, max_bytes=65536, what="renewal")


def test_a_silent_fleet_manager_costs_nothing(device, manager):
    """Nobody answers: the old key stays, the request waits on disk."""
    manager.close()
    with pytest.raises(UnavailableError) as caught:
        device.renew()
    assert caught.value.code == "fleet_manager_unreachable"
    assert device.fits() == device.first


class Told:
    """An emitter that remembers codes."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def tell(self, _step, code: str, _message: str, **_: object) -> None:
        self.codes.append(code)

    def error(self, _step, error: EdgeFleetError) -> None:
        self.codes.append(error.code)


class Clockwork:
    """A Renewer whose main thread is the test's."""

    def __init__(self, device: Device, **settings: object) -> None:
        self.identity, acceptance = device.start()
        self.told, self.ended, self.queue = Told(), [], []
        self.renewer = Renewer(
            config.Identity(**settings), self.identity, acceptance, self.told,
            self.queue.append, self.ended.append,
        )  # fmt: skip

    def run(self) -> float:
        """Let time ask once, and wait for what that begins."""
        rest = self.renewer.wait_s()
        if self.renewer.busy:
            until(lambda: self.queue, "an answer")
            self.queue.pop(0)()
        return rest


def test_it_renews_at_two_thirds_of_its_life_and_not_before(device):
    """A fresh certificate waits; one past its time is renewed without a word."""
    early = Clockwork(device)
    assert early.run() > 0
    assert early.ended == []
    late = Clockwork(device, renew_at=1e-9)
    late.run()
    assert (late.ended, late.told.codes) == ([True], ["renewed"])
    off = Clockwork(device, renew=False, renew_at=1e-9)
    off.run()
    assert off.ended == []


def test_a_word_counts_for_the_key_that_it_names(device):
    """Another key, garbage, and a second word at once change nothing."""
    clock = Clockwork(device)
    for word in (b"", b"{", strict_json.encode(RenewAsk(1, "sha256:" + "0" * 64))):
        clock.renewer.asked(word)
        clock.run()
    assert clock.ended == []
    clock.renewer.asked(strict_json.encode(RenewAsk(1, clock.identity.who.key)))
    clock.run()
    assert clock.ended == [True]
    clock.renewer.asked(strict_json.encode(RenewAsk(1, clock.identity.who.key)))
    assert clock.run() > 5
    assert clock.ended == [True]
    clock.renewer.force()
    clock.run()
    assert clock.ended == [True, True]


def test_distrust_of_the_broker_asks_for_another_certificate_once_in_a_while(device):
    """A refused certificate is renewed at once; if that does not help, not again for minutes."""
    clock = Clockwork(device)
    clock.renewer.distrusted()
    clock.run()
    assert clock.ended == [True]
    for _ in range(5):
        clock.renewer.distrusted()
        clock.run()
    assert clock.ended == [True]


def test_a_refusal_is_told_and_tried_again_later(device, manager):
    """It says so once, keeps the old key and slows down."""
    manager.fail = 403
    clock = Clockwork(device, renew_at=1e-9)
    clock.run()
    assert (clock.ended, clock.told.codes) == ([False], ["renewal_failed"])
    assert 0 < clock.run() <= 2
    assert device.fits() == device.first
