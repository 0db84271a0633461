"""The provider's keys: asked for rarely, kept while it is away, and never taken on trust."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from edgefleet_cloud.auth.oidc import keys as module
from edgefleet_cloud.auth.oidc.claims import Oidc, Rules, values
from edgefleet_cloud.auth.oidc.fetch import MAX_BYTES, fetcher, is_safe
from edgefleet_cloud.auth.oidc.keys import KeyCache
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker.credentials import write_pair
from edgefleet_cloud.config import load
from edgefleet_cloud.errors import UnauthenticatedError
from edgefleet_shared.errors import InvalidInputError, UnavailableError
from tests.brokers import make_authority
from tests.cloud.oidc_provider import new_key

ISSUER = "https://id.example"
KEY, ENTRY = new_key("ES256", "k1")
PUBLIC = {name: value for name, value in ENTRY.items() if name != "d"}


class Provider:
    """Documents as a provider serves them, and how often it was asked; with a clock to turn."""

    def __init__(self) -> None:
        self.now, self.asked, self.away = 1000.0, 0, False
        self.about = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/jwks"}
        self.keys = [PUBLIC]

    def __call__(self, url: str) -> bytes:
        self.asked += 1
        if self.away:
            raise UnavailableError("away")
        assert url.startswith(ISSUER)
        return json.dumps({"keys": self.keys} if url.endswith("jwks") else self.about).encode()

    def cache(self) -> KeyCache:
        return KeyCache(ISSUER, self, lambda: self.now)


@pytest.fixture
def provider():
    """A provider that shows one key."""
    return Provider()


def test_unknown_ids_do_not_hammer_the_provider(provider):
    """A hundred tokens with made-up ids cost one question in half a minute."""
    cache = provider.cache()
    cache.find("k1")
    first = provider.asked
    for n in range(100):
        with pytest.raises(UnauthenticatedError):
            cache.find(f"made-up-{n}")
    assert provider.asked == first
    provider.now += module.AGAIN_S
    provider.keys = [PUBLIC, {**PUBLIC, "kid": "k2"}]
    assert cache.find("k2")
    assert provider.asked == first + 2


def test_a_key_that_is_withdrawn_ends(provider):
    """At the next look after ten minutes a key that is shown no more is known no more."""
    cache = provider.cache()
    cache.find("k1")
    provider.keys = [{**PUBLIC, "kid": "k2"}]
    cache.find("k1")
    provider.now += module.FRESH_S
    with pytest.raises(UnauthenticatedError):
        cache.find("k1")


def test_keys_outlive_the_provider_for_a_day(provider):
    """Away, its keys count for a day; then it is 503, and never an open door."""
    cache = provider.cache()
    cache.find("k1")
    provider.away = True
    provider.now += module.STALE_S
    assert cache.find("k1")
    provider.now += 1
    with pytest.raises(UnavailableError):
        cache.find("k1")
    provider.away, provider.now = False, provider.now + module.AGAIN_S
    assert cache.find("k1")


@pytest.mark.parametrize(
    ("about", "keys"),
    [
        ({"issuer": "https://evil.example"}, None),
        ({"issuer": ISSUER + "/"}, None),
        ({"jwks_uri": "http://id.example/jwks"}, None),
        ({"jwks_uri": "file:///etc/passwd"}, None),
        ({"jwks_uri": None}, None),
        ({}, []),
        ({}, "none"),
        ({}, [{"kty": "oct", "kid": "k1", "k": "c2VjcmV0", "alg": "HS256"}]),
        ({}, [{**PUBLIC, "use": "enc"}]),
        ({}, [{name: value for name, value in PUBLIC.items() if name != "kid"}]),
        ({}, [{**PUBLIC, "x": "AAAA"}]),
        ({}, [7, None, {}]),
    ],
)
def test_documents_that_are_not_right_open_nothing(provider, about, keys):
    """Another issuer, keys by plain http, secret, unnamed or broken keys: nothing is known."""
    provider.about |= about
    provider.keys = provider.keys if keys is None else keys
    with pytest.raises(UnavailableError):
        provider.cache().find("k1")


def test_short_keys_are_none():
    """An RSA key of 1024 bits is not taken."""
    from cryptography.hazmat.primitives.asymmetric import rsa
    from jwt.algorithms import RSAAlgorithm

    for bits, taken in ((1024, False), (2048, True)):
        key = rsa.generate_private_key(65537, bits).public_key()
        entry = {**RSAAlgorithm.to_jwk(key, as_dict=True), "kid": "k1"}
        assert (module._usable(entry) is not None) is taken


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"azp": "edgefleet-cli"}, True),
        ({"client_id": "edgefleet-cli"}, True),
        ({"azp": "other"}, False),
        ({"azp": "other", "client_id": "edgefleet-cli"}, False),
        ({}, False),
        ({"aud": ["x", "edgefleet"], "azp": "edgefleet-cli"}, True),
        ({"aud": ["x", "edgefleet"], "azp": "other"}, False),
    ],
)
def test_tokens_of_other_clients(provider, claims, good):
    """Where client_id is configured, a token that was made for another client is refused."""
    rules = Rules(ISSUER, "edgefleet", "edgefleet-cli", "sub", 0, ())
    now = int(time.time())
    body = {"iss": ISSUER, "aud": "edgefleet", "sub": "anna", "iat": now, "exp": now + 60, **claims}
    token = jwt.encode(body, KEY, "ES256", headers={"kid": "k1"})
    if good:
        assert Oidc(rules, provider.cache()).check(token).actor == "oidc/anna"
        return
    with pytest.raises(UnauthenticatedError):
        Oidc(rules, provider.cache()).check(token)


@pytest.mark.parametrize(
    ("claims", "path", "found"),
    [
        ({"roles": ["a", "b"]}, "roles", {"a", "b"}),
        ({"roles": "a b"}, "roles", {"a", "b"}),
        ({"realm": {"roles": ["a"]}}, "realm.roles", {"a"}),
        ({"https://x.example/roles": ["a"]}, "https://x.example/roles", {"a"}),
        ({"roles": [1, None, {"a": 1}, "a"]}, "roles", {"a"}),
        ({"roles": {"a": True}}, "roles", set()),
        ({"roles": True}, "roles", set()),
        ({}, "realm.roles", set()),
        ({"realm": "roles"}, "realm.roles", set()),
        ({"email": "a@x.example"}, "email", set()),
        ({"email": "a@x.example", "email_verified": "true"}, "email", set()),
        ({"email": "a@x.example", "email_verified": True}, "email", {"a@x.example"}),
    ],
)
def test_what_a_claim_holds(claims, path, found):
    """Lists, text with spaces and nested claims are read; everything else holds nothing."""
    assert values(claims, path) == found


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://id.example", True),
        ("http://127.0.0.1:8080/x", True),
        ("http://localhost/x", True),
        ("http://id.example", False),
        ("http://127.0.0.1.evil.example/", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("https://[", False),
    ],
)
def test_only_https_is_asked(url, safe):
    """Plain http is for a provider on this very machine alone."""
    assert is_safe(url) is safe


class _Tricky(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/fine")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * (MAX_BYTES + 1 if self.path == "/long" else 2))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_fetching_is_bounded():
    """No redirect is followed, nothing endless is read, and nobody answering is said so."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Tricky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    fetch = fetcher()
    assert fetch(f"{url}/fine") == b"xx"
    for path in ("/away", "/long"):
        with pytest.raises(UnavailableError):
            fetch(url + path)
    server.shutdown()
    server.server_close()
    with pytest.raises(UnavailableError):
        fetch(f"{url}/fine")
    with pytest.raises(UnavailableError):
        fetch("http://id.example/x")


def test_the_providers_certificate_is_checked(tmp_path):
    """By https a provider is believed only with a certificate of the configured CA."""
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    for folder in (ours, foreign):
        make_authority(folder)
    authority, now = DeviceCa.load(ours), datetime.now(UTC)
    names, life, pair = ["127.0.0.1"], timedelta(days=1), tmp_path / "server.pem"
    write_pair(pair, lambda key: authority.sign_server(key, names, now, life))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Tricky)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_address[1]}/fine"
    assert fetcher(str(ours / "device-ca.crt"))(url) == b"xx"
    for ca in ("", str(foreign / "device-ca.crt")):
        with pytest.raises(UnavailableError) as refused:
            fetcher(ca)(url)
        assert "certificate" in refused.value.message.lower()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('issuer = "id.example"', "is not https://HOST"),
        (f'issuer = "{ISSUER}"', "oidc.audience is missing"),
        (f'issuer = "{ISSUER}"\naudience = "x"\nleeway_s = 3600', "leeway_s"),
        (
            f'issuer = "{ISSUER}"\naudience = "x"\nmapping = [{{value = "a", role = "root"}}]',
            "role",
        ),
        (f'issuer = "{ISSUER}"\naudience = "x"\nmapping = [{{role = "admin"}}]', "value"),
    ],
)
def test_a_configuration_that_cannot_be(folder, lines, says):
    """An issuer without an audience, and a role that is none, stop the start."""
    folder.config.write_text(folder.config.read_text() + f"\n[oidc]\n{lines}\n")
    with pytest.raises(InvalidInputError) as refused:
        load(folder.config, {})
    assert says in refused.value.message
