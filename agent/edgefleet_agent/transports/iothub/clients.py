"""What the SDK is told: how we show who we are, whom we believe, by which way we go.

Key and certificate are read anew for every client, as they may have been renewed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from pathlib import Path
from typing import Any, NamedTuple

from azure.iot.device import X509, ProxyOptions
from azure.iot.device.aio import (
    IoTHubDeviceClient,
    IoTHubModuleClient,
    ProvisioningDeviceClient,
)

from edgefleet_agent.config import IotHub
from edgefleet_agent.tls import Tls
from edgefleet_agent.transports.iothub.address import parse_proxy
from edgefleet_shared.errors import InvalidInputError

_X509: Any = X509  # neither carries annotations
_ProxyOptions: Any = ProxyOptions

KEEPALIVE_MAX_S = 1177
"""The hub closes connections that are silent for longer (documented)."""
RENEWED_BEFORE_S = 120
"""The SDK makes a new token so long before the old one expires."""


class Credentials(NamedTuple):
    """What a device shows, and whom it believes.

    Attributes:
        device: Its id at the hub.
        options: Section `[iothub]`.
        tls: Certificate and key for `auth = "x509"`.
        ca: PEM file of who may sign the hub's certificate; None = the system's.
        keepalive_s: Longest silence.
        product: What we call ourselves.
    """

    device: str
    options: IotHub
    tls: Tls
    ca: Path | None
    keepalive_s: int
    product: str

    @property
    def registration(self) -> str:
        """The id at the Device Provisioning Service."""
        return self.options.registration_id or self.device

    @property
    def token_s(self) -> float | None:
        """Seconds that a client goes on before it renews its token; None if it needs none."""
        if self.options.auth == "x509":
            return None
        return float(self.options.token_ttl_s - RENEWED_BEFORE_S)


async def hub_client(known: Credentials, host: str) -> Any:
    """Return a client for one connection; nothing is opened yet.

    Raises:
        OSError: A file cannot be read, or the IoT Edge runtime does not answer.
        ValueError: Key and certificate do not fit.
        InvalidInputError: The key file holds no key.
    """
    options = known.options
    given = _common(known) | {
        "product_info": known.product,
        # A broken connection ends its client; the next is ours to make, with a jittered back-off.
        "auto_connect": False,
        "connection_retry": False,
        "ensure_desired_properties": False,
    }
    if options.auth == "edge":
        del given["server_verification_cert"]
        given["sastoken_ttl"] = options.token_ttl_s
        # Asks the runtime's workload API over HTTP.
        return await asyncio.to_thread(IoTHubModuleClient.create_from_edge_environment, **given)
    kind = IoTHubModuleClient if options.module else IoTHubDeviceClient
    if options.auth == "sas":
        given["sastoken_ttl"] = options.token_ttl_s
        return kind.create_from_connection_string(_connection_string(known, host), **given)
    if options.gateway:
        given["gateway_hostname"] = options.gateway
    if options.module:
        given["module_id"] = options.module
    return kind.create_from_x509_certificate(
        x509=_x509(known.tls), hostname=host, device_id=known.device, **given
    )


def dps_client(known: Credentials, host: str, scope: str) -> Any:
    """Return a client that asks the Device Provisioning Service once.

    Raises:
        OSError: A file cannot be read.
        ValueError: Key and certificate do not fit.
        InvalidInputError: The key file holds no key.
    """
    given = _common(known) | {
        "provisioning_host": host,
        "registration_id": known.registration,
        "id_scope": scope,
    }
    if known.options.auth == "sas":
        return ProvisioningDeviceClient.create_from_symmetric_key(
            symmetric_key=device_key(known), **given
        )
    return ProvisioningDeviceClient.create_from_x509_certificate(x509=_x509(known.tls), **given)


def device_key(known: Credentials) -> str:
    """Return the device's symmetric key in base64, derived if a group's lies in the file.

    Raises:
        OSError: The file cannot be read.
        InvalidInputError: It holds no key.
    """
    text = _read_key(known.options.key_file)
    found = dict(part.partition("=")[::2] for part in text.split(";")) if ";" in text else {}
    key = found.get("SharedAccessKey", text)
    try:
        secret = base64.b64decode(key, validate=True)
    except binascii.Error:
        secret = b""
    if not secret:
        raise InvalidInputError(
            f"{known.options.key_file} holds no symmetric key.",
            code="configuration",
            hint="It must hold the key in base64, or the device's connection string.",
        )
    if known.options.key_is == "group":
        derived = hmac.new(secret, known.registration.encode(), hashlib.sha256)
        return base64.b64encode(derived.digest()).decode()
    return key


def _connection_string(known: Credentials, host: str) -> str:
    parts = {
        "HostName": host,
        "DeviceId": known.device,
        "ModuleId": known.options.module,
        "SharedAccessKey": device_key(known),
        "GatewayHostName": known.options.gateway,
    }
    return ";".join(f"{name}={value}" for name, value in parts.items() if value)


def _read_key(file: str) -> str:
    return Path(file).read_text().strip()


def _x509(tls: Tls) -> Any:
    return _X509(cert_file=str(tls.certificate), key_file=str(tls.key))


def _common(known: Credentials) -> dict[str, Any]:
    proxy = parse_proxy(known.options.proxy)
    return {
        "server_verification_cert": known.ca.read_text() if known.ca else None,
        "websockets": known.options.websockets,
        "proxy_options": proxy and _ProxyOptions(*proxy),
        "keep_alive": min(known.keepalive_s, KEEPALIVE_MAX_S),
    }
