"""Whether a token or a certificate shows who somebody is. Pure."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from edgefleet_provisioning.iothub_double.refusals import HubError

_CHAIN = 8


class Token(NamedTuple):
    """A shared access signature; `resource` decoded, `signed` as it was signed."""

    resource: str
    signed: str
    signature: str
    expires: int
    policy: str


def refused(message: str) -> HubError:
    """Return the refusal of who does not show who it is."""
    return HubError(401, "IotHubUnauthorizedAccess", message)


def read_token(text: str) -> Token:
    """Read `SharedAccessSignature sr=..&sig=..&se=..[&skn=..]`, the fields in any order.

    Raises:
        HubError: 401, it is none.
    """
    word, _, rest = text.strip().partition(" ")
    fields = dict(part.split("=", 1) for part in rest.split("&") if "=" in part)
    if word != "SharedAccessSignature" or not {"sr", "sig", "se"} <= fields.keys():
        raise refused("The password is no shared access signature.")
    if not fields["se"].isdigit():
        raise refused("The expiry of the token is no number.")
    signed = f"{fields['sr']}\n{fields['se']}"
    resource, signature = unquote(fields["sr"]), unquote(fields["sig"])
    return Token(resource, signed, signature, int(fields["se"]), unquote(fields.get("skn", "")))


def sign(key: str, text: str) -> str:
    """Return the HMAC-SHA256 of a text by a key in base64, in base64."""
    made = hmac.digest(base64.b64decode(key), text.encode(), "sha256")
    return base64.b64encode(made).decode()


def make_token(resource: str, key: str, expires: int, policy: str = "") -> str:
    """Return a shared access signature.

    Args:
        resource: What it is for, such as `{host}/devices/{device}`.
        key: In base64.
        expires: Seconds since 1970.
        policy: Name of the key, "" for a device's own.
    """
    named = quote(resource, safe="")
    signature = quote(sign(key, f"{named}\n{expires}"), safe="")
    token = f"SharedAccessSignature sr={named}&sig={signature}&se={expires}"
    return f"{token}&skn={quote(policy, safe='')}" if policy else token


def check_token(token: Token, resource: str, keys: Iterable[str], now: float) -> None:
    """Look whether a token is for a resource or for one above it, alive, and signed by a key.

    Raises:
        HubError: 401, with what is wrong.
    """
    wanted, given = resource.lower(), token.resource.lower().rstrip("/")
    if wanted != given and not wanted.startswith(given + "/"):
        raise refused(f"The token is for {token.resource}, not for {resource}.")
    if token.expires <= now:
        raise refused("The token has expired.")
    if not any(hmac.compare_digest(sign(key, token.signed), token.signature) for key in keys):
        raise refused("The token is signed by none of the keys.")


def derived_key(group: str, registration: str) -> str:
    """Return the key that a group's key makes for one device, both in base64."""
    return sign(group, registration)


def thumbprints(certificate: x509.Certificate) -> set[str]:
    """Return the SHA-1 and the SHA-256 thumbprint of a certificate, upper-case hex."""
    return {
        certificate.fingerprint(hashes.SHA1()).hex().upper(),  # noqa: S303 - Azure's own choice
        certificate.fingerprint(hashes.SHA256()).hex().upper(),
    }


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name of a certificate's subject, "" without one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def check_dates(certificate: x509.Certificate, now: float) -> None:
    """Look whether a certificate holds now.

    Raises:
        HubError: 401.
    """
    moment = datetime.fromtimestamp(now, UTC)
    if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
        raise refused("The certificate does not hold now.")


def issuer_of(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], now: float
) -> x509.Certificate:
    """Return the authority that a chain leads to.

    Args:
        chain: The leaf, then the CA certificates that came with it, in any order.
        authorities: Those that are trusted.
        now: Seconds since 1970.

    Raises:
        HubError: 401, it leads to none, or a certificate on the way does not hold now.
    """
    leaf = chain[0]
    for _ in range(_CHAIN):
        check_dates(leaf, now)
        found = next((ca for ca in authorities if _issued(leaf, ca)), None)
        if found is not None:
            return found
        above = next((ca for ca in chain[1:] if ca != leaf and _issued(leaf, ca)), None)
        if above is None:
            break
        leaf = above
    raise refused("The certificate's chain leads to no CA that is trusted here.")


def _issued(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        if not ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return True
