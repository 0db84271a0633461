"""Who the fleet manager is to a hub."""

from __future__ import annotations

import base64
import hashlib
import hmac
from types import SimpleNamespace
from urllib.parse import quote, unquote

import pytest

from edgefleet_cloud.hub_config import IotHub
from edgefleet_cloud.iothub import tokens
from edgefleet_shared.errors import InvalidInputError, UnavailableError

KEY = base64.b64encode(b"k" * 32).decode()
TEXT = f"HostName=h.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey={KEY}"


def hub(tmp_path, text=TEXT, host="h.azure-devices.net"):
    """Return a hub whose connection string is in a file."""
    path = tmp_path / "connection.txt"
    path.write_text(text + "\n")
    return IotHub(name="main", host=host, connection_file=str(path), events_file="x")


def fields(signature):
    """Return the fields of a shared access signature."""
    kind, _, rest = signature.partition(" ")
    assert kind == "SharedAccessSignature"
    return {k: unquote(v) for k, _, v in (part.partition("=") for part in rest.split("&"))}


def test_a_signature_is_what_the_documentation_says(tmp_path):
    """HMAC-SHA256 of resource, newline and end, by the policy's key."""
    found = fields(tokens.of(hub(tmp_path), lambda: 1000.0).authorization())
    assert (found["sr"], found["se"], found["skn"]) == ("h.azure-devices.net", "4600", "service")
    signed = f"{quote('h.azure-devices.net', safe='')}\n4600".encode()
    expected = hmac.new(base64.b64decode(KEY), signed, hashlib.sha256).digest()
    assert base64.b64decode(found["sig"]) == expected


def test_a_signature_is_renewed_before_it_ends():
    """It is the same for three quarters of an hour, then a new one; also after a clock's jump."""
    now = [1000.0]
    authority = tokens.Sas("h", "service", KEY, lambda: now[0])
    first = authority.authorization()
    now[0] += 2000
    assert authority.authorization() == first
    now[0] += 800
    second = authority.authorization()
    assert second != first
    now[0] = 1000.0  # set back: the old end would be too far away
    assert fields(authority.authorization())["se"] == "4600"


def test_a_refused_signature_is_made_anew():
    """After `forget` there is another one as soon as the clock gives one."""
    now = [1000.0]
    authority = tokens.Sas("h", "service", KEY, lambda: now[0])
    first = authority.authorization()
    now[0] += 1
    authority.forget()
    assert authority.authorization() != first


def test_a_rotated_key_is_taken_up_without_a_restart(tmp_path, caplog):
    """Once the hub refuses the old one, the file is read again; a broken file changes nothing."""
    configured = hub(tmp_path)
    authority = tokens.of(configured, lambda: 1000.0)
    old = authority.authorization()
    new = base64.b64encode(b"n" * 32).decode()
    (tmp_path / "connection.txt").write_text(TEXT.replace(KEY, new))
    assert authority.authorization() == old
    authority.forget()
    assert fields(authority.authorization())["sig"] != fields(old)["sig"]
    (tmp_path / "connection.txt").write_text("half a li")
    newer = authority.authorization()
    authority.forget()
    assert authority.authorization() == newer
    assert "old key is kept" in caplog.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "HostName"),
        ("HostName=h;SharedAccessKeyName=s", "SharedAccessKey is missing"),
        ("HostName=h;SharedAccessKeyName=s;SharedAccessKey=!!", "not base64"),
        ("Endpoint=sb://x;SharedAccessKeyName=s;SharedAccessKey=aaaa", "HostName is missing"),
    ],
)
def test_a_bad_connection_string_is_explained(tmp_path, text, says):
    """The message names what is missing, the hint shows the form."""
    with pytest.raises(InvalidInputError, match=says) as caught:
        tokens.of(hub(tmp_path, text))
    assert "SharedAccessKeyName=service" in caught.value.hint


def test_another_hubs_connection_string_is_refused(tmp_path):
    """It would open the wrong hub."""
    with pytest.raises(InvalidInputError, match="not for other"):
        tokens.of(hub(tmp_path, host="other.azure-devices.net"))


def test_a_missing_file_is_named(tmp_path):
    """A path that cannot be read is said."""
    with pytest.raises(InvalidInputError, match="nowhere"):
        tokens.of(IotHub(name="a", host="h", connection_file="/nowhere/c.txt", events_file="x"))


class Credential:
    """Gives tokens that hold for an hour, and counts them."""

    def __init__(self):
        self.scopes, self.error, self.now = [], None, 0.0

    def get_token(self, scope):
        """Return the next token."""
        if self.error:
            raise self.error
        self.scopes.append(scope)
        return SimpleNamespace(token=f"t{len(self.scopes)}", expires_on=self.now + 3600)


def test_a_token_of_entra_id_is_kept_until_it_ends_soon():
    """The scope is IoT Hub's; a token is asked for again five minutes before its end."""
    credential = Credential()
    authority = tokens.Entra(credential, lambda: credential.now)
    assert authority.authorization() == "Bearer t1"
    credential.now = 3200
    assert authority.authorization() == "Bearer t1"
    credential.now = 3301
    assert authority.authorization() == "Bearer t2"
    assert set(credential.scopes) == {"https://iothubs.azure.net/.default"}


def test_an_identity_that_gets_no_token_is_told_apart():
    """It is a matter of time or of a role, and nothing of azure-identity's leaks out."""
    credential = Credential()
    credential.error = RuntimeError("no managed identity here")
    with pytest.raises(UnavailableError, match="no managed identity") as caught:
        tokens.Entra(credential).authorization()
    assert caught.value.code == "iothub_credentials"


def test_without_a_connection_file_it_is_entra_id():
    """azure-identity's own default credential is made; nothing is asked of it yet."""
    assert isinstance(tokens.of(IotHub(name="a", host="h", events_file="x")), tokens.Entra)
