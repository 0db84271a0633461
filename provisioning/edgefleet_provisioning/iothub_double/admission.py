"""Whether a device that introduces itself is let in, and as whom. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cryptography import x509

from edgefleet_provisioning.iothub_double.codec import Connect
from edgefleet_provisioning.iothub_double.credentials import (
    check_dates,
    check_token,
    common_name,
    issuer_of,
    read_token,
    refused,
    thumbprints,
)
from edgefleet_provisioning.iothub_double.refusals import HubError
from edgefleet_provisioning.iothub_double.registry import Identity
from edgefleet_provisioning.iothub_double.state import Azure, Hub

BAD_ID, UNAVAILABLE, BAD_USER, UNAUTHORIZED = 2, 3, 4, 5
"""Return codes of a CONNACK."""
_CONNECTING = ("iothubowner", "device")  # policies whose key may speak for any device
_USER = re.compile(
    r"(?P<host>[^/]+)/(?P<device>[^/]+)(/(?P<module>[^/]+))?/\??(?=.*\bapi-version=\d{4}-\d\d-\d\d).*"
)


class RefusedError(Exception):
    """A device is not let in; `code` goes into the CONNACK."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Admission(NamedTuple):
    """Who has come: `auth` as an event says it, `expires` in seconds since 1970 or None."""

    hub: Hub
    device: str
    module: str
    auth: dict[str, Any]
    expires: float | None


def admit(azure: Azure, hello: Connect, chain: Sequence[x509.Certificate]) -> Admission:
    """Look whether a device may come in.

    Args:
        azure: Where hubs and devices are.
        hello: Its CONNECT.
        chain: The certificates it presented, its own first; empty without one.

    Raises:
        RefusedError: It may not.
    """
    named = _USER.fullmatch(hello.username)
    if named is None:
        raise RefusedError(BAD_USER, f"No user name of a device: {hello.username!r}.")
    device, module = named["device"], named["module"] or ""
    if hello.client_id != (f"{device}/{module}" if module else device):
        raise RefusedError(BAD_ID, "The client id is not the one of the user name.")
    try:
        hub = azure.hub(named["host"])
        identity = hub.registry.get(device, module)
        if "disabled" in {identity.status, hub.registry.get(device).status}:
            raise refused("The device is disabled.")
        auth, expires = _prove(hub, identity, hello.password, chain)
    except HubError as error:
        raise RefusedError(UNAUTHORIZED, str(error)) from error
    try:
        hub.throttles.spend("connections")
    except HubError as error:
        raise RefusedError(UNAVAILABLE, str(error)) from error
    return Admission(hub, device, module, auth, expires)


def _prove(
    hub: Hub, identity: Identity, password: str, chain: Sequence[x509.Certificate]
) -> tuple[dict[str, Any], float | None]:
    about = {"scope": "module" if identity.module else "device"}
    now = hub.clock.now()
    if password:
        token = read_token(password)
        module = f"/modules/{identity.module}" if identity.module else ""
        if token.policy:
            if token.policy not in _CONNECTING:
                raise refused(f"The policy {token.policy} does not let devices connect.")
            keys: tuple[str, ...] = (hub.policies[token.policy],)
            about["scope"] = "hub"
        else:
            keys = identity.keys
        check_token(token, f"{hub.host}/devices/{identity.device}{module}", keys, now)
        return {**about, "type": "sas", "issuer": "iothub"}, float(token.expires)
    if not chain:
        raise refused("Neither a token nor a certificate.")
    judge = _JUDGES.get(identity.auth)
    if judge is None:
        raise refused(f"The device shows who it is by {identity.auth}, not by a certificate.")
    judge(hub, identity, chain)
    return {**about, "type": "x509", "issuer": "external"}, None


def _by_thumbprint(hub: Hub, identity: Identity, chain: Sequence[x509.Certificate]) -> None:
    check_dates(chain[0], hub.clock.now())
    if not thumbprints(chain[0]) & {text for text in identity.thumbprints if text}:
        raise refused("The certificate's thumbprint is not the device's.")


def _by_authority(hub: Hub, identity: Identity, chain: Sequence[x509.Certificate]) -> None:
    wanted = f"{identity.device}/{identity.module}" if identity.module else identity.device
    if common_name(chain[0]) != wanted:
        raise refused(f"The certificate is for {common_name(chain[0])}, not for {wanted}.")
    issuer_of(chain, hub.registry.authorities, hub.clock.now())


_JUDGES: dict[str, Callable[[Hub, Identity, Sequence[x509.Certificate]], None]] = {
    "selfSigned": _by_thumbprint, "certificateAuthority": _by_authority,
}  # fmt: skip
