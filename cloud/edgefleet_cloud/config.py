"""The fleet manager's configuration: one frozen value, read once from TOML and the environment."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from edgefleet_cloud import hub_config
from edgefleet_cloud.hub_config import IotHub
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import check_name


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which MQTT broker to use; without a url an embedded one is started on loopback.

    Kind `none` is for a fleet that is on Azure IoT Hubs alone.
    """

    url: str = ""  # mqtt://host:1883 or mqtts://host:8883; '' = embedded
    kind: Literal["auto", "mosquitto", "amqtt", "none"] = "auto"  # auto: mosquitto if found
    listen: str = ""  # of the embedded broker, for example 0.0.0.0:8883; '' = loopback and `port`
    port: int = 0  # of the embedded broker on loopback; 0 = any free port, the same ever after
    tls: bool = True  # of the embedded broker; False = plain, on loopback only, believes everybody
    public_url: str = ""  # what devices are told; '' = the url itself
    ca: str = ""  # PEM file of who may sign the broker's certificate; '' = the fleet's device CA
    cert: str = ""  # PEM file of our certificate for mqtts; '' = issued by the fleet's device CA
    key: str = ""
    crl_file: str = ""  # a second place for the revocation lists, where a broker reads them
    reload: str = ""  # command after they were written, e.g. systemctl kill -s HUP mosquitto

    def address(self) -> tuple[str, int] | None:
        """Return host and port of `listen`, or None if it is not given.

        Raises:
            InvalidInputError: It is not HOST:PORT.
        """
        return _host_and_port(self.listen, "broker.listen") if self.listen else None


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long devices' certificates hold, and how late a device may still renew by its key."""

    certificate_life_days: Annotated[int, Meta(ge=7, le=30)] = 30
    renewal_grace_days: Annotated[int, Meta(ge=0)] = 365  # after expiry; 0 = not at all


class Controller(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How rollouts are driven."""

    interval_s: float = 1.0  # between two looks at every running rollout
    lease_s: float = 30.0  # a claimed rollout is free again after this
    assignment_life_h: int = 168


class Intake(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version must bring to be accepted, beyond its publisher's TUF signature."""

    require_provenance: bool = False  # an OpenSSF Model Signing bundle by its publisher's key


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one caller may take."""

    upload_max_bytes: int = 8 * 1024**3
    body_max_bytes: int = 4 * 1024 * 1024  # of a JSON request
    auth_failures: int = 20  # failed authentications of one address in a row that are answered
    auth_refill_s: float = 6.0  # one of them is forgiven after this


class OidcRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A role for everybody in whose token a claim has a value."""

    value: str
    role: Literal["viewer", "operator", "publisher", "provisioner", "admin"]
    scope: str = ""  # within this filter; '' = the whole fleet
    claim: str = ""  # '' = roles_claim; a.b is claim b in claim a


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenID provider whose tokens are taken beside our own."""

    issuer: str = ""  # exactly as it names itself; '' = none
    audience: str = ""  # what `aud` must hold
    client_id: str = ""  # what `azp` or `client_id` must be; '' = any client's
    roles_claim: str = "roles"
    subject_claim: str = "sub"  # names the actor; email counts only if it is verified
    leeway_s: int = 30  # between its clock and ours
    ca: str = ""  # PEM file of the CA behind its certificate; '' = the system's
    mapping: tuple[OidcRole, ...] = ()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it. Paths are absolute once loaded; in the file they are relative to the file."""

    fleet: str
    listen: str = "127.0.0.1:8080"  # port 0 = any free port
    public_url: str = ""  # what devices and operators are told; '' = http://<listen>
    data_dir: str = "data"
    keys_dir: str = "keys"
    metadata_dir: str = "metadata"
    database_url: str = ""  # '' = SQLite in data_dir
    admin_token_file: str = "admin.token"  # noqa: S105 - a file's name
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    trusted_proxies: tuple[str, ...] = ()  # networks whose X-Forwarded-For is believed
    broker: Broker = Broker()
    controller: Controller = Controller()
    identity: Identity = Identity()
    intake: Intake = Intake()
    limits: Limits = Limits()
    oidc: Oidc = Oidc()
    iothub: tuple[IotHub, ...] = ()

    @property
    def data(self) -> Path:
        """Folder of database, blobs, uploads and broker."""
        return Path(self.data_dir)

    @property
    def keys(self) -> Path:
        """Folder of the online keys."""
        return Path(self.keys_dir)

    @property
    def metadata(self) -> Path:
        """Folder of the TUF repository."""
        return Path(self.metadata_dir)

    @property
    def api_url(self) -> str:
        """Base URL under which others reach the API."""
        return (self.public_url or f"http://{self.listen}").rstrip("/")

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data / 'fleet.db'}"

    @property
    def proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Networks of the proxies in front of us.

        Raises:
            InvalidInputError: One is no network.
        """
        try:
            return tuple(ip_network(each) for each in self.trusted_proxies)
        except ValueError as error:
            raise _bad(f"trusted_proxies: {error}") from error

    def address(self) -> tuple[str, int]:
        """Return host and port to listen on.

        Raises:
            InvalidInputError: `listen` is not HOST:PORT.
        """
        return _host_and_port(self.listen, "listen")


_PATHS = ("data_dir", "keys_dir", "metadata_dir", "admin_token_file")
_OVERRIDES = (*_PATHS, "fleet", "listen", "public_url", "database_url", "log_level")


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration.

    Args:
        path: A TOML file, usually `online/cloud.toml` of a fleet folder.
        environ: `EDGEFLEET_CLOUD_<KEY>` wins over the file for every top-level key and, as
            `EDGEFLEET_CLOUD_BROKER_<KEY>`, for the broker's; as
            `EDGEFLEET_CLOUD_IOTHUB_<NAME>_<KEY>` for those of a hub that the file names.

    Raises:
        InvalidInputError: The file is missing, is not TOML, or holds an unknown or ill-typed key.
    """
    try:
        fields = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise _bad(f"{path} cannot be read: {why}") from error
    _override(fields, environ)
    try:
        # strict=False: what comes from the environment is text.
        config = msgspec.convert(fields, Config, strict=False)
    except msgspec.ValidationError as error:
        raise _bad(f"{path} does not hold: {error}") from error
    check_name(config.fleet, "fleet")
    config.address()
    _ = config.proxies
    if config.limits.auth_failures < 1 or config.limits.auth_refill_s <= 0:
        raise _bad("limits.auth_failures and limits.auth_refill_s must be above 0")
    _check_urls(config)
    _check_oidc(config.oidc)
    _check_broker(config.broker)
    _check_hubs(config)
    folder = path.resolve().parent
    places = {key: str(folder / getattr(config, key)) for key in _PATHS}
    broker = {
        key: str(folder / value)
        for key in ("ca", "cert", "key", "crl_file")
        if (value := getattr(config.broker, key))
    }
    oidc = config.oidc
    if oidc.ca:
        oidc = msgspec.structs.replace(oidc, ca=str(folder / oidc.ca))
    return msgspec.structs.replace(
        config,
        **places,
        broker=msgspec.structs.replace(config.broker, **broker),
        oidc=oidc,
        iothub=hub_config.absolute(config.iothub, folder),
    )


def _check_hubs(config: Config) -> None:
    try:
        hub_config.check(config.iothub)
    except ValueError as error:
        raise _bad(str(error)) from error
    if config.broker.kind != "none":
        return
    if config.broker.url or config.broker.listen:
        raise _bad('broker.kind = "none" has no url and no listen')
    if not any(hub.default for hub in config.iothub):
        raise _bad('with broker.kind = "none" one [[iothub]] needs default = true')


def _check_oidc(oidc: Oidc) -> None:
    if not oidc.issuer:
        return
    if not _is_url(oidc.issuer, {"http", "https"}):
        raise _bad(f"oidc.issuer = {oidc.issuer!r} is not https://HOST")
    if not oidc.audience:
        raise _bad("oidc.audience is missing: tokens for other services would be taken")
    if not 0 <= oidc.leeway_s <= 300:
        raise _bad(f"oidc.leeway_s = {oidc.leeway_s} is not 0 to 300")


def _check_urls(config: Config) -> None:
    for key, value, schemes in (
        ("public_url", config.public_url, {"http", "https"}),
        ("broker.url", config.broker.url, {"mqtt", "mqtts"}),
        ("broker.public_url", config.broker.public_url, {"mqtt", "mqtts"}),
    ):
        if value and not _is_url(value, schemes):
            shape = " or ".join(f"{scheme}://HOST:PORT" for scheme in sorted(schemes))
            raise _bad(f"{key} = {value!r} is not {shape}")


def _check_broker(broker: Broker) -> None:
    if not 0 <= broker.port <= 65535:
        raise _bad(f"broker.port = {broker.port} is not a port")
    given = broker.address()
    if given and not given[1]:
        raise _bad("broker.listen needs a port that stays: devices are told it once")
    if given and not broker.tls:
        raise _bad("broker.tls = false believes everybody, so that broker.listen must be empty")
    if bool(broker.cert) != bool(broker.key):
        raise _bad("broker.cert and broker.key need one another")


def _host_and_port(value: str, key: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _bad(f"{key} = {value!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _is_url(value: str, schemes: set[str]) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False


def _override(fields: dict[str, Any], environ: Mapping[str, str]) -> None:
    for key in _OVERRIDES:
        if value := environ.get(f"EDGEFLEET_CLOUD_{key.upper()}"):
            fields[key] = value
    for key in Broker.__struct_fields__:
        if value := environ.get(f"EDGEFLEET_CLOUD_BROKER_{key.upper()}"):
            fields.setdefault("broker", {})[key] = value
    hub_config.override(fields.get("iothub"), environ)


def _bad(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"The configuration cannot be used: {why}.",
        code="configuration",
        hint="`edgefleet init` writes a working cloud.toml; docs/reference.md lists every key.",
    )
