"""Enrolment: a ticket once, a key that never leaves, and nothing half done."""

from __future__ import annotations

import base64
import json
import stat
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgefleet_agent import durable
from edgefleet_agent.cli import main
from edgefleet_agent.compose import lock
from edgefleet_agent.enrollment import enroll
from edgefleet_agent.identity import Identity, load_key
from edgefleet_agent.trust.floors import FloorStore
from edgefleet_shared import access
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError
from edgefleet_shared.identifiers import sha256_digest
from tests.agent.world import World


class Registrar:
    """The enrolment end of a fleet manager, with answers that can be spoiled."""

    def __init__(self, world: World) -> None:
        self.world, self.key = world, ec.generate_private_key(ec.SECP256R1())
        self.used: set[str] = set()
        self.spoil: dict[str, object] = {}
        self.asked = 0
        registrar = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, body = registrar.answer(
                    json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                )
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def ticket(self, device: str = "cam-1", **fields: object) -> str:
        """Return a ticket string."""
        body = {
            "v": 1, "fleet": "demo", "device": device, "url": self.url, "secret": "s" * 32,
            "root": sha256_digest(self.world.first_root), "not_after": "2030-01-01T00:00:00Z",
        } | fields  # fmt: skip
        return base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=")

    def answer(self, request: dict[str, str]) -> tuple[int, dict[str, object]]:
        """Burn the ticket and sign the request."""
        self.asked += 1
        if request["ticket"] in self.used:
            return 409, {"detail": "The ticket was used.", "code": "ticket_used", "hint": ""}
        self.used.add(request["ticket"])
        csr = x509.load_pem_x509_csr(request["csr"].encode())
        assert csr.is_signature_valid
        answer: dict[str, object] = {
            "fleet": "demo", "device": "cam-1", "certificate": self.certify(csr.public_key()),
            "ca": self.certify(self.key.public_key()), "counter": 7,
            "root": base64.b64encode(self.world.first_root).decode(),
            "transport": {"kind": "mqtt", "url": "mqtt://127.0.0.1:1"},
            "blobs": f"{self.url}/v1/blobs",
        }  # fmt: skip
        return 201, answer | self.spoil

    def certify(self, key) -> str:
        """Return a certificate for a key."""
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cam-1")])
        now = datetime.now(UTC)
        built = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key)
            .serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
            .sign(self.key, hashes.SHA256())
        )  # fmt: skip
        return built.public_bytes(serialization.Encoding.PEM).decode()

    def close(self) -> None:
        """End."""
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def registrar():
    """A registrar of a fleet."""
    world = World()
    registrar = Registrar(world)
    yield registrar
    registrar.close()
    world.close()


def test_a_device_enrols_once_and_is_somebody(registrar, tmp_path):
    """Key 0600, pinned root, floors from the start, and statements that the key signs."""
    identity = enroll(tmp_path, registrar.ticket())
    assert (identity.fleet, identity.device) == ("demo", "cam-1")
    key = tmp_path / "identity" / "device.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert Identity(tmp_path / "identity").root == registrar.world.first_root
    floors = FloorStore(tmp_path / "trust").current
    assert (floors.root, floors.counter) == (1, 7)
    now = datetime.now(UTC)
    header = identity.authorization("http://here/v1/blobs/x", now)
    assert (
        access.check_header(header, "demo", "http://here", identity.signer.public_key, now)
        == "cam-1"
    )
    assert not (tmp_path / "identity" / "reply.json").exists()


def test_the_minimum_of_the_answer_becomes_the_floor(registrar, tmp_path):
    """No catalog older than on the day of the enrolment is believed, of no role."""
    registrar.spoil["minimum"] = {
        "root": 3, "timestamp": 90, "snapshot": 40, "targets": 5, "publisher/digits": 6
    }  # fmt: skip
    enroll(tmp_path, registrar.ticket())
    floors = FloorStore(tmp_path / "trust").current
    assert (floors.root, floors.timestamp, floors.snapshot) == (3, 90, 40)
    assert floors.targets == {"targets": 5, "publisher/digits": 6}
    assert floors.counter == 7


def test_enrolling_again_as_the_same_device_changes_nothing(registrar, tmp_path):
    """The command may be repeated; the server is not asked."""
    first = enroll(tmp_path, registrar.ticket())
    again = enroll(tmp_path, registrar.ticket())
    assert (again.who, registrar.asked) == (first.who, 1)


def test_another_ticket_makes_the_device_anew_with_another_key(registrar, tmp_path):
    """A revoked device cannot know that it is: a new ticket readmits it, but never its old key."""
    first = enroll(tmp_path, registrar.ticket())
    again = enroll(tmp_path, registrar.ticket(secret="t" * 32))
    assert registrar.asked == 2
    assert again.who.device == first.who.device
    assert again.who.key != first.who.key
    assert again.certificate().public_key() == load_key(tmp_path / "identity").public_key()
    assert enroll(tmp_path, registrar.ticket(secret="t" * 32)).who == again.who
    assert registrar.asked == 2
    assert not (tmp_path / "identity" / "enrolling.json").exists()


def test_a_refused_ticket_leaves_the_identity_as_it_is(registrar, tmp_path):
    """The old key goes only once there is a certificate for the new one."""
    first = enroll(tmp_path, registrar.ticket())
    bad = registrar.ticket(secret="t" * 32)
    registrar.used.add(bad)
    with pytest.raises(InvalidInputError, match="was used"):
        enroll(tmp_path, bad)
    registrar.spoil = {"device": "cam-2"}
    with pytest.raises(EdgeFleetError):
        enroll(tmp_path, registrar.ticket(secret="u" * 32))
    assert Identity(tmp_path / "identity").who == first.who
    registrar.spoil = {}
    assert enroll(tmp_path, registrar.ticket(secret="v" * 32)).who.key != first.who.key


@pytest.mark.parametrize("cut", ["root.json", "floors", "renewed.json", "ticket"])
def test_enrolling_anew_goes_on_wherever_it_was_cut(registrar, tmp_path, monkeypatch, cut):
    """Power fails before a file: the old identity stands, or the new one; the command ends it."""
    enroll(tmp_path, registrar.ticket())
    new = registrar.ticket(secret="t" * 32)
    write = durable.atomic_write

    def fail(path, *rest):
        if path.name.startswith(cut):
            raise OSError("the power is gone")
        write(path, *rest)

    if cut == "floors":
        for path in (tmp_path / "trust").iterdir():
            path.unlink()
    monkeypatch.setattr(durable, "atomic_write", fail)
    with pytest.raises(OSError, match="power"):
        enroll(tmp_path, new)
    monkeypatch.undo()
    standing = Identity(tmp_path / "identity")
    assert standing.certificate().public_key() == load_key(tmp_path / "identity").public_key()
    enrolled = enroll(tmp_path, new)
    assert registrar.asked == 2
    assert enrolled.certificate().public_key() == load_key(tmp_path / "identity").public_key()


def test_an_identity_in_use_is_not_replaced(registrar, tmp_path, capsys):
    """While agentd runs another ticket is refused, unused; the same one says who the device is."""
    toml = tmp_path / "agent.toml"
    toml.write_text('state_dir = "state"\nrun_dir = "run"\n')
    first = registrar.ticket()
    assert main(["enroll", "--config", str(toml), "--ticket", first]) == 0
    with lock(tmp_path / "state"):
        new = registrar.ticket(secret="t" * 32)
        assert main(["enroll", "--config", str(toml), "--ticket", new]) == 1
        assert "already running" in capsys.readouterr().err
        assert main(["enroll", "--config", str(toml), "--ticket", first]) == 0
    assert registrar.asked == 1


def test_lost_floors_are_mended_by_a_new_ticket(registrar, tmp_path):
    """The counter floor comes from the fleet manager."""
    enroll(tmp_path, registrar.ticket())
    for path in (tmp_path / "trust").iterdir():
        path.unlink()
    enroll(tmp_path, registrar.ticket(secret="t" * 32))
    assert registrar.asked == 2
    assert FloorStore(tmp_path / "trust").current.counter == 7


def test_enrolling_as_somebody_else_is_refused(registrar, tmp_path):
    """An identity is not replaced by accident."""
    enroll(tmp_path, registrar.ticket())
    with pytest.raises(InvalidInputError) as caught:
        enroll(tmp_path, registrar.ticket("cam-2"))
    assert caught.value.code == "already_enrolled"


@pytest.mark.parametrize(
    "left", [{"device.key"}, {"device.key", "reply.json"}, {"device.key", "reply.json", "ca.crt"}]
)
def test_an_interrupted_enrolment_goes_on(registrar, tmp_path, left):
    """From any file on; with the answer on disk, the burnt ticket is not needed again."""
    ticket = registrar.ticket()
    enroll(tmp_path, ticket)
    folder = tmp_path / "identity"
    _, reply = registrar.answer({"ticket": "other", "csr": _csr_of(folder)})
    (folder / "reply.json").write_text(json.dumps(reply))
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    if "reply.json" not in left:
        ticket = registrar.ticket(secret="t" * 32)
    asked = registrar.asked
    identity = enroll(tmp_path, ticket)
    assert identity.device == "cam-1"
    assert registrar.asked - asked == ("reply.json" not in left)


def _csr_of(folder) -> str:
    key = serialization.load_pem_private_key((folder / "device.key").read_bytes(), None)
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def spoiled_root(registrar):
    """Another root than the ticket names."""
    return {"root": base64.b64encode(b"{}").decode()}


def spoiled_key(registrar):
    """A certificate for a key that is not ours."""
    return {"certificate": registrar.certify(ec.generate_private_key(ec.SECP256R1()).public_key())}


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (spoiled_root, "wrong_root"),
        (spoiled_key, "wrong_key"),
        (lambda _: {"device": "cam-2"}, "wrong_device"),
        (lambda _: {"root": "***"}, "malformed"),
        (lambda _: {"certificate": "none"}, "malformed"),
        (lambda _: {"transport": 5}, "malformed"),
    ],
)
def test_an_answer_that_does_not_fit_leaves_no_identity(registrar, tmp_path, spoil, code):
    """Whoever sits in between gets nothing believed and nothing kept."""
    registrar.spoil = spoil(registrar)
    with pytest.raises(EdgeFleetError) as caught:
        enroll(tmp_path, registrar.ticket())
    assert caught.value.code == code
    with pytest.raises(InvalidInputError):
        Identity(tmp_path / "identity")
    registrar.spoil = {}
    enroll(tmp_path, registrar.ticket(secret="t" * 32))


@pytest.mark.parametrize("text", ["", "%%%", "e30", "W10", "a" * 10_000])
def test_what_is_no_ticket_is_said_to_be_none(tmp_path, text):
    """Garbage, empty, another JSON, far too long."""
    with pytest.raises(InvalidInputError) as caught:
        enroll(tmp_path, text)
    assert caught.value.code == "ticket"
    assert not (tmp_path / "identity").exists()


def test_commands_fail_in_one_paragraph(registrar, tmp_path, capsys):
    """A used ticket and an unreachable server: what is wrong, what to do, and an exit code."""
    toml = tmp_path / "agent.toml"
    toml.write_text('state_dir = "state"\nrun_dir = "run"\n')
    ticket = registrar.ticket()
    registrar.used.add(ticket)
    assert main(["enroll", "--config", str(toml), "--ticket", ticket]) == 2
    assert "was used" in capsys.readouterr().err
    nobody = registrar.ticket(url="http://127.0.0.1:1")
    assert main(["enroll", "--config", str(toml), "--ticket", nobody]) == 3
    text = capsys.readouterr().err
    assert "does not answer" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "content", "status", "words"),
    [
        (["run"], "", 2, "not enrolled"),
        (["status"], "", 1, "No agent runs"),
        (["run"], "stat_dir = 1", 2, "stat_dir"),
        (["run"], "[[[", 2, "cannot be read"),
        (["run"], 'log_level = "LOUD"', 2, "log level"),
        (["enroll", "--ticket", "x"], "", 2, "not an enrolment ticket"),
        (["enroll", "--ticket-file", "/nonexistent"], "", 2, "cannot be read"),
    ],
)
def test_bad_input_is_told_with_a_hint(tmp_path, capsys, arguments, content, status, words):
    """Every command, each with something missing."""
    toml = tmp_path / "agent.toml"
    paths = f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n'
    toml.write_text(content if "[[[" in content else paths + content)
    assert main([*arguments, "--config", str(toml)]) == status
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1
