"""The hub's identity registry: devices, modules, their keys and certificates."""

from __future__ import annotations

import base64
import itertools
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cryptography import x509

from edgefleet_provisioning.iothub_double.clock import Clock, iso
from edgefleet_provisioning.iothub_double.refusals import HubError, bad, not_found, precondition

Auth = Literal["sas", "selfSigned", "certificateAuthority", "none"]
AUTHS = ("sas", "selfSigned", "certificateAuthority", "none")
NEVER = "0001-01-01T00:00:00Z"
_ID = re.compile(r"[A-Za-z0-9\-.%_*?!(),:=@$']{1,128}")  # as documented, without + and #
_GENERATION = itertools.count(638_000_000_000_000_000)


@dataclass
class Identity:
    """A device, or a module of a device.

    Attributes:
        device: Its id.
        module: The module's id, "" for a device.
        auth: How it shows who it is.
        primary: First symmetric key, in base64; "" without one.
        secondary: Second one.
        thumbprints: Of self-signed certificates: two, SHA-1 or SHA-256 in upper-case hex, or "".
        status: A disabled one may not connect.
        managed_by: Of a module: who runs it ("iotEdge"), or "".
        edge: Whether it is an IoT Edge device.
        version: Counts changes; the etag is made of it.
        connected: Whether it has a connection now.
        connection_changed: When that changed, as the hub writes times.
    """

    device: str
    module: str
    auth: Auth
    primary: str
    secondary: str
    thumbprints: tuple[str, str] = ("", "")
    status: Literal["enabled", "disabled"] = "enabled"
    status_reason: str | None = None
    managed_by: str = ""
    edge: bool = False
    version: int = 1
    generation: str = field(default_factory=lambda: str(next(_GENERATION)))
    connected: bool = False
    connection_changed: str = NEVER
    status_changed: str = NEVER
    last_activity: str = NEVER
    queued: int = 0

    @property
    def etag(self) -> str:
        """The etag of the identity, without quotes."""
        return base64.b64encode(str(self.version).encode()).decode()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that sign its tokens."""
        return tuple(key for key in (self.primary, self.secondary) if key)

    def document(self) -> dict[str, Any]:
        """Return it as the registry's REST interface does."""
        sas = self.auth == "sas"
        first, second = self.thumbprints
        about: dict[str, Any] = {
            "deviceId": self.device,
            "generationId": self.generation,
            "etag": self.etag,
            "connectionState": "Connected" if self.connected else "Disconnected",
            "connectionStateUpdatedTime": self.connection_changed,
            "lastActivityTime": self.last_activity,
            "cloudToDeviceMessageCount": self.queued,
            "authentication": {
                "symmetricKey": {
                    "primaryKey": self.primary if sas else None,
                    "secondaryKey": self.secondary if sas else None,
                },
                "x509Thumbprint": {
                    "primaryThumbprint": first or None,
                    "secondaryThumbprint": second or None,
                },
                "type": self.auth,
            },
        }
        if self.module:
            return {**about, "moduleId": self.module, "managedBy": self.managed_by or None}
        return {
            **about,
            "status": self.status,
            "statusReason": self.status_reason,
            "statusUpdatedTime": self.status_changed,
            "capabilities": {"iotEdge": self.edge},
        }


class Registry:
    """All identities of one hub. Thread-safe.

    Args:
        clock: The double's time.
        lock: The hub's lock.
        changed: Told `(identity, "create" | "update" | "delete")`, under the lock.
    """

    def __init__(
        self, clock: Clock, lock: threading.RLock, changed: Callable[[Identity, str], None]
    ) -> None:
        self.authorities: list[x509.Certificate] = []
        """CA certificates that sign devices' certificates ("X.509 CA signed")."""
        self._clock, self._lock, self._changed = clock, lock, changed
        self._found: dict[tuple[str, str], Identity] = {}

    def trust(self, pem: bytes) -> None:
        """Take a CA certificate as verified."""
        with self._lock:
            self.authorities.extend(x509.load_pem_x509_certificates(pem))

    def create(
        self, device: str, module: str = "", *, auth: Auth = "sas", primary: str | None = None,
        secondary: str | None = None, thumbprints: tuple[str, str] = ("", ""),
        status: Literal["enabled", "disabled"] = "enabled", managed_by: str = "",
        edge: bool = False,
    ) -> Identity:  # fmt: skip
        """Make an identity; keys that are not given are made.

        Raises:
            HubError: 400 for a bad id or key, 404 for a module of no device, 409 if it exists.
        """
        identity = Identity(
            device, module, auth,
            _key(primary) if auth == "sas" else "", _key(secondary) if auth == "sas" else "",
            _thumbprints(auth, thumbprints), status, managed_by=managed_by, edge=edge,
        )  # fmt: skip
        for name in (device, module):
            if name and not _ID.fullmatch(name):
                raise bad(f"{name!r} is no id of a device or a module.")
        with self._lock:
            if (device, module) in self._found:
                what = "Module" if module else "Device"
                raise HubError(409, f"{what}AlreadyExists", f"{what} {module or device} exists.")
            if module:
                self.get(device)
            self._found[device, module] = identity
            self._changed(identity, "create")
        return identity

    def get(self, device: str, module: str = "") -> Identity:
        """Return an identity.

        Raises:
            HubError: 404.
        """
        found = self._found.get((device, module))
        if found is None:
            raise not_found(device, module)
        return found

    def update(
        self, device: str, module: str = "", *, if_match: str | None = None, **changes: Any
    ) -> Identity:
        """Change attributes of an identity, by the names that `Identity` has for them.

        Args:
            device: Its id.
            module: Its module, or "".
            if_match: The etag that it must have; None and "*" take any.
            **changes: auth, primary, secondary, thumbprints, status, status_reason, edge.

        Raises:
            HubError: 400, 404, or 412 if the etag is another.
        """
        with self._lock:
            identity = self.get(device, module)
            match(if_match, identity.etag)
            auth = changes.get("auth", identity.auth)
            thumbprints = _thumbprints(auth, changes.pop("thumbprints", identity.thumbprints))
            for key in ("primary", "secondary"):
                old = getattr(identity, key)
                made = _key(changes.pop(key, None) or old or None) if auth == "sas" else ""
                setattr(identity, key, made)
            if changes.get("status", identity.status) != identity.status:
                identity.status_changed = iso(self._clock.now())
            for name, value in changes.items():
                setattr(identity, name, value)
            identity.thumbprints = thumbprints
            identity.version += 1
            self._changed(identity, "update")
            return identity

    def delete(self, device: str, module: str = "", if_match: str | None = None) -> None:
        """Delete an identity, and a device's modules with it.

        Raises:
            HubError: 404, or 412 if the etag is another.
        """
        with self._lock:
            match(if_match, self.get(device, module).etag)
            gone = [(device, module)] if module else [n for n in self._found if n[0] == device]
            for name in gone:
                self._changed(self._found.pop(name), "delete")

    def all(self) -> list[Identity]:
        """Return all devices, without modules, by id."""
        with self._lock:
            return [found for name, found in sorted(self._found.items()) if not name[1]]

    def modules(self, device: str) -> list[Identity]:
        """Return the modules of a device."""
        with self._lock:
            return [found for name, found in self._found.items() if name[0] == device and name[1]]


def match(if_match: str | None, etag: str) -> None:
    """Look whether an If-Match header lets a change happen.

    Raises:
        HubError: 412.
    """
    wanted = (if_match or "*").strip().removeprefix("W/").strip('"')
    if wanted not in {"*", "", etag}:
        raise precondition()


def make_key() -> str:
    """Return a new symmetric key, in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def _key(given: str | None) -> str:
    if given is None:
        return make_key()
    try:
        size = len(base64.b64decode(given, validate=True))
    except ValueError:
        size = 0
    if not 16 <= size <= 64:
        raise bad("A symmetric key is 16 to 64 bytes in base64.")
    return given


def _thumbprints(auth: str, given: tuple[str, str]) -> tuple[str, str]:
    if auth not in AUTHS:
        raise bad(f"There is no authentication {auth}.")
    cleaned = [text.replace(":", "").upper() for text in given]
    if auth == "selfSigned" and not any(cleaned):
        raise bad("A self-signed certificate needs a thumbprint.")
    for text in cleaned:
        if text and not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", text):
            raise bad("A thumbprint is SHA-1 or SHA-256 in hex.")
    return cleaned[0], cleaned[1]
