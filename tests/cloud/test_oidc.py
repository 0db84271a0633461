"""Tokens of a real OpenID provider: taken for what they say, and refused for everything else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import stat
import threading
import time
from functools import partial

import httpx
import jwt
import pytest
from typer.testing import CliRunner

from edgefleet_provisioning.cli import app
from edgefleet_provisioning.device_login import log_in
from tests.cloud.oidc_provider import AUDIENCE, OTHER_AUDIENCE, OidcProvider, new_key
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder

CLAIMS = {
    "anna": {"roles": ["fleet-operators", "staff"]},
    "robot": {"roles": "watchers publishers", "email": "boss@example.org"},
    "nobody": {"roles": ["strangers"]},
    "boss": {"email": "boss@example.org", "email_verified": True},
}
FORM = r'<form[^>]*action="([^"]+)"[^>]*>(.*?)</form>'
ABORT = {"abort": "yes"}
TOML = """
[limits]
auth_failures = 1000

[oidc]
issuer = "{issuer}"
audience = "{audience}"
leeway_s = 0

[[oidc.mapping]]
value = "fleet-operators"
role = "operator"
scope = "labels.site == 'berlin'"

[[oidc.mapping]]
value = "watchers"
role = "viewer"

[[oidc.mapping]]
value = "publishers"
role = "publisher"
scope = "model == 'digits'"

[[oidc.mapping]]
claim = "sub"
value = "carla"
role = "viewer"

[[oidc.mapping]]
claim = "email"
value = "boss@example.org"
role = "admin"
"""


@pytest.fixture(scope="module")
def keys():
    """Three private keys by id, one an algorithm, as keys and as JWKs."""
    algorithms = {"rsa-1": "RS256", "ec-1": "ES256", "ed-1": "EdDSA"}
    return {kid: new_key(alg, kid) for kid, alg in algorithms.items()}


@pytest.fixture(scope="module")
def provider(keys):
    """The provider, signing by RS256."""
    running = OidcProvider(CLAIMS)
    running.start("RS256", "rsa-1", [entry for _, entry in keys.values()])
    yield running
    running.stop()


@pytest.fixture(scope="module")
def cloud(provider, tmp_path_factory):
    """A fleet manager that takes the provider's tokens."""
    folder = FleetFolder(tmp_path_factory.mktemp("oidc") / "fleet")
    text = folder.config.read_text()
    toml = TOML.format(issuer=provider.issuer, audience=AUDIENCE)
    folder.config.write_text(text + toml)
    running = RunningCloud(folder)
    yield running
    running.stop()


def _who(cloud, token):
    return cloud.bearing(token).get("/v1/whoami")


def _refused(cloud, token, says=""):
    answer = _who(cloud, token)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), answer.text
    assert says in answer.json()["detail"], answer.json()["detail"]


def _forged(claims, header, signature=b""):
    """Return a token of these parts."""
    parts = [json.dumps(each).encode() for each in (header, claims)] + [signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def _claims(token):
    return jwt.decode(token, options={"verify_signature": False})


def test_a_token_means_its_subject_and_roles(cloud, provider):
    """The claim's values give roles within scopes; the actor is `oidc/` and the subject."""
    assert _who(cloud, provider.token("anna")).json() == {
        "actor": "oidc/anna",
        "roles": [{"role": "operator", "scope": 'labels.site == "berlin"'}],
    }
    assert _who(cloud, provider.token("robot")).json()["roles"] == [
        {"role": "viewer", "scope": ""},
        {"role": "publisher", "scope": 'model == "digits"'},
    ]


def test_roles_and_scopes_hold(cloud, provider):
    """What is outside of the mapped scope is not found; what the role lacks is refused; told so."""
    cloud.client.post("/v1/devices", json={"id": "ber-1", "labels": {"site": "berlin"}})
    cloud.client.post("/v1/devices", json={"id": "par-1", "labels": {"site": "paris"}})
    anna = cloud.bearing(provider.token("anna"))
    assert [d["id"] for d in anna.get("/v1/devices").json()["items"]] == ["ber-1"]
    assert anna.get("/v1/devices/par-1").status_code == 404
    assert anna.get("/v1/tokens").status_code == 403
    change = {"labels": {"line": "1"}}
    anna.patch("/v1/devices/ber-1", json=change, headers={"If-Match": "*"})
    told = cloud.client.get("/v1/events", params={"filter": "actor == 'oidc/anna'"}).json()
    assert [event["subject"] for event in told["items"]] == ["devices/ber-1"]


def test_whoever_has_no_mapped_role_may_do_nothing(cloud, provider):
    """Being known is not being allowed: no role, no permission."""
    client = cloud.bearing(provider.token("nobody"))
    assert client.get("/v1/whoami").json()["roles"] == []
    assert client.get("/v1/devices").status_code == 403


def test_an_address_counts_only_if_it_is_verified(cloud, provider):
    """`robot` claims the boss's address unverified and gets none of the boss's roles."""
    assert {r["role"] for r in _who(cloud, provider.token("robot")).json()["roles"]} == {
        "viewer", "publisher",
    }  # fmt: skip
    assert _who(cloud, provider.token("boss")).json()["roles"] == [{"role": "admin", "scope": ""}]


def test_a_token_for_another_service_is_refused(cloud, provider):
    """The provider's own signature does not help a token whose audience is somebody else."""
    _refused(cloud, provider.token("anna", OTHER_AUDIENCE), "Audience")


def test_unsigned_and_forged_tokens_are_refused(cloud, provider, keys):
    """Alg none, HS256 by the public key, a stranger's key under a known id, another algorithm."""
    good = provider.token("anna")
    claims, known = _claims(good), jwt.get_unverified_header(good)
    for none in ("none", "None", "NONE", ""):
        _refused(cloud, _forged(claims, {**known, "alg": none}), "algorithm")
    rsa_1 = keys["rsa-1"][0].public_key()
    for secret in _public_forms(rsa_1, provider.shown()):
        header = {**known, "alg": "HS256"}
        body = _forged(claims, header).rsplit(".", 1)[0]
        mac = hmac.new(secret, body.encode(), hashlib.sha256).digest()
        _refused(cloud, _forged(claims, header, mac), "algorithm")
    stranger = new_key("RS256", "rsa-1")[0]
    kid = {"kid": "rsa-1", "typ": "at+jwt"}
    _refused(cloud, jwt.encode(claims, stranger, "RS256", headers=kid), "Signature")
    _refused(cloud, jwt.encode(claims, keys["ec-1"][0], "ES256", headers=kid))
    own = {**kid, "jwk": new_key("RS256", "x")[1], "jku": "http://127.0.0.1:1/jwks"}
    _refused(cloud, jwt.encode(claims, stranger, "RS256", headers=own), "Signature")


def _public_forms(key, shown):
    """Return the spellings of a public key that such an attack uses as a secret."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return [pem, pem.strip(), der, *(json.dumps(entry).encode() for entry in shown), b""]


def test_tampered_tokens_are_refused(cloud, provider):
    """A changed claim, a changed header, a cut or borrowed signature: none holds."""
    good, other = provider.token("anna"), provider.token("boss")
    header, body, signature = good.split(".")
    raised = base64.urlsafe_b64encode(
        json.dumps({**_claims(good), "roles": ["watchers"]}).encode()
    ).rstrip(b"=").decode()  # fmt: skip
    for token in (
        f"{header}.{raised}.{signature}",
        f"{header}.{body}.{other.split('.')[2]}",
        f"{header}.{other.split('.')[1]}.{signature}",
        f"{header}.{body}.{signature[:-4]}",
        f"{header}.{body}.",
        f"{header}.{body}",
        f"{header}.{body}.{signature}.x",
        "ey.ey.ey",
        "eyJhbGciOiJSUzI1NiJ9..",
        good + "A" * 20_000,
    ):
        _refused(cloud, token)


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://other.example"},
        {"aud": "edgefleet"},
        {"aud": None},
        {"exp": None},
        {"exp": 1},
        {"exp": "soon"},
        {"nbf": 2**33},
        {"iat": 2**33},
        {"sub": None},
        {"sub": ""},
        {"sub": "an na"},
        {"sub": "x" * 500},
        {"sub": 7},
    ],
)
def test_claims_must_be_right(cloud, provider, keys, change):
    """Even the provider's own key cannot sign away issuer, audience, times and subject."""
    claims = {**_claims(provider.token("anna")), **change}
    claims = {name: value for name, value in claims.items() if value is not None}
    headers = {"kid": "rsa-1", "typ": "at+jwt"}
    part = jwt.api_jws.encode(json.dumps(claims).encode(), keys["rsa-1"][0], "RS256", headers)
    _refused(cloud, part)


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "logout+jwt"},
        {"kid": None},
        {"crit": ["x"], "x": 1},
    ],
)
def test_headers_must_be_right(cloud, provider, keys, header):
    """A token of another type, without a key's id, or with demands that nobody knows is refused."""
    claims = _claims(provider.token("anna"))
    headers = {"kid": "rsa-1", "typ": "at+jwt", **header}
    known = {name: value for name, value in headers.items() if value is not None}
    token = jwt.api_jws.encode(json.dumps(claims).encode(), keys["rsa-1"][0], "RS256", known)
    _refused(cloud, token)


class Person(threading.Thread):
    """Somebody with a browser, who opens what the command line says and answers every form."""

    def __init__(self, said: str, *, name: str, agrees: bool = True) -> None:
        super().__init__(daemon=True)
        self._address = re.search(r"http\S+", said)[0]
        self._login, self._agrees = name, agrees
        self.seen = ""

    def run(self) -> None:
        with httpx.Client(follow_redirects=True) as browser:
            page = browser.get(self._address)
            while form := re.search(FORM, page.text, re.DOTALL):
                fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[2]))
                if 'name="login"' in form[2]:
                    fields |= {"login": self._login, "password": "any"}
                page = browser.post(form[1], data=fields if self._agrees else fields | ABORT)
                if not self._agrees:
                    break
            self.seen = page.text


def _log_in(cloud, provider, monkeypatch, tmp_path, **person):
    """Run `edgefleet login` with somebody at a browser; return what it answered."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    quick = partial(log_in, sleep=lambda _seconds: time.sleep(0.2))
    monkeypatch.setattr("edgefleet_provisioning.commands.login.log_in", quick)
    people = []

    def note(_self, text):
        people.append(Person(text, **person))
        people[-1].start()

    monkeypatch.setattr("edgefleet_provisioning.output.Output.note", note)
    words = [
        "login",
        "--issuer",
        provider.issuer,
        "--audience",
        AUDIENCE,
        "--scope",
        "openid fleet",
    ]
    answer = CliRunner().invoke(app, [*words, "--server", cloud.url, "--json"])
    assert people, answer.output
    people[0].join()
    return answer


def test_people_log_in_by_device_flow(cloud, provider, monkeypatch, tmp_path):
    """A login is confirmed in a browser; commands are then that person's, until logout."""
    answer = _log_in(cloud, provider, monkeypatch, tmp_path, name="carla")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["actor"] == "oidc/carla"
    kept = tmp_path / "edgefleet" / "logins.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    server = ["--server", cloud.url, "--json"]
    who = CliRunner().invoke(app, ["whoami", *server])
    assert json.loads(who.stdout)["roles"] == [{"role": "viewer", "scope": ""}]
    assert CliRunner().invoke(app, ["device", "list", *server]).exit_code == 0
    assert CliRunner().invoke(app, ["device", "add", "x", *server]).exit_code == 1
    other = CliRunner().invoke(app, ["whoami", "--server", cloud.url + "/other", "--json"])
    assert other.exit_code == 1  # the token goes to its own server alone
    for was in (True, False):
        out = CliRunner().invoke(app, ["logout", *server])
        assert json.loads(out.stdout)["logged_out"] is was
    assert CliRunner().invoke(app, ["whoami", *server]).exit_code == 1


def test_somebody_who_does_not_agree_is_not_logged_in(cloud, provider, monkeypatch, tmp_path):
    """Aborted in the browser, the login ends with the provider's words, and nothing is kept."""
    answer = _log_in(cloud, provider, monkeypatch, tmp_path, name="carla", agrees=False)
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["error"]["code"] == "login"
    assert not (tmp_path / "edgefleet").exists()


def test_keys_rotate_and_the_provider_may_be_away(cloud, provider, keys, monkeypatch):
    """A new key is fetched when it appears, an old one goes; without the provider known keys go on.

    Tokens that expire while the provider is away are refused all the same.
    """
    monkeypatch.setattr("edgefleet_cloud.auth.oidc.keys.AGAIN_S", 0.0)
    old = provider.token("anna")
    assert _who(cloud, old).status_code == 200
    provider.stop()
    entries = [keys["ec-1"][1], keys["ed-1"][1], new_key("RS256", "rsa-2")[1]]
    provider.start("ES256", "ec-1", entries, life_s=2)
    by_ec = provider.token("anna")
    assert jwt.get_unverified_header(by_ec)["alg"] == "ES256"
    assert _who(cloud, by_ec).status_code == 200
    provider.stop()
    provider.start("EdDSA", "ed-1", entries)
    assert _who(cloud, provider.token("anna")).status_code == 200
    provider.stop()
    provider.start("RS256", "rsa-2", entries)
    by_rsa = provider.token("anna")
    assert _who(cloud, by_rsa).status_code == 200
    _refused(cloud, old, "does not show")  # fetched anew, the first key is gone
    provider.stop()
    assert _who(cloud, by_rsa).status_code == 200
    time.sleep(max(0.0, _claims(by_ec)["exp"] + 0.1 - time.time()))
    _refused(cloud, by_ec, "expired")
    unknown = jwt.encode(_claims(by_rsa), new_key("RS256", "x")[0], "RS256", headers={"kid": "new"})
    _refused(cloud, unknown, "does not show")


def test_a_provider_that_was_never_reached_opens_nothing(provider, keys, tmp_path):
    """Without keys nobody is let in: 503 with a hint, and API tokens go on."""
    folder = FleetFolder(tmp_path / "fleet")
    toml = TOML.format(issuer="http://127.0.0.1:9", audience=AUDIENCE)
    folder.config.write_text(folder.config.read_text() + toml)
    cloud = RunningCloud(folder)
    claims = {"iss": "http://127.0.0.1:9", "aud": AUDIENCE, "sub": "anna", "exp": 2**31, "iat": 1}
    token = jwt.encode(claims, keys["rsa-1"][0], "RS256", headers={"kid": "rsa-1"})
    answer = _who(cloud, token)
    assert (answer.status_code, answer.json()["code"]) == (503, "oidc_unavailable")
    assert "API token" in answer.json()["hint"]
    assert cloud.client.get("/v1/whoami").status_code == 200
    cloud.stop()
