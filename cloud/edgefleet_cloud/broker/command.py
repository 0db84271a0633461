"""`broker-config` and `broker-certificate`: what a broker that stands alone needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from edgefleet_cloud import durable
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.broker import mosquitto
from edgefleet_cloud.broker.acl import managers
from edgefleet_cloud.broker.credentials import KEY_MODE, key_pem, normal_name
from edgefleet_cloud.broker.mosquitto import STANDARD_PATHS, MtlsPaths
from edgefleet_cloud.ports import system_clock
from edgefleet_shared.errors import InvalidInputError

DAYS = 365


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of `broker-config`."""
    parser.add_argument("--kind", choices=["mosquitto"], default="mosquitto", help="which broker")
    parser.add_argument(
        "--mtls", action="store_true", help="know clients by certificate (all interfaces)"
    )
    parser.add_argument("--acl", action="store_true", help="print the access list instead")
    parser.add_argument("--port", type=int, help="default: 8883 with --mtls, else 1883")
    parser.add_argument("--managers", type=int, default=1, help="fleet-manager certificates")
    for name, default in STANDARD_PATHS._asdict().items():
        meaning = "folder of persistence" if name == "data" else f"path of the {name} file"
        parser.add_argument(f"--{name}-path", default=default, help=f"{meaning}; {default}")


def text(options: argparse.Namespace) -> str:
    """Return what `broker-config` prints.

    Raises:
        InvalidInputError: The options make no sense.
    """
    if options.port is not None and not 0 < options.port < 65536:
        raise InvalidInputError(f"{options.port} is not a port.", hint="Use 1 to 65535.")
    _check_managers(options.managers)
    if options.acl:
        return mosquitto.acl(options.managers)
    if options.mtls:
        paths = MtlsPaths(*(getattr(options, f"{name}_path") for name in MtlsPaths._fields))
        return mosquitto.mtls_config(paths, options.port or 8883)
    return mosquitto.plain_config(options.port or 1883, Path(options.data_path))


def add_certificate_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of `broker-certificate`."""
    parser.add_argument(
        "--name", action="append", required=True, help="host name or address; may be given again"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the broker's files")
    parser.add_argument("--days", type=int, default=DAYS, help=f"how long it holds; {DAYS}")
    parser.add_argument("--managers", type=int, default=1, help="fleet-manager certificates")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def write_certificate(options: argparse.Namespace, ca: DeviceCa, lists: Path) -> Sequence[Path]:
    """Write all files that a broker on another host needs; return their paths.

    Args:
        options: As parsed.
        ca: Signs the certificate.
        lists: The fleet manager's newest revocation lists.

    Raises:
        InvalidInputError: The options make no sense, or there are no revocation lists yet.
    """
    _check_managers(options.managers)
    if not 1 <= options.days <= 3650:
        raise InvalidInputError(f"{options.days} days make no sense.", hint="Use 1 to 3650.")
    if not lists.exists():
        raise InvalidInputError(
            f"There are no revocation lists yet: {lists} is missing.",
            hint="Start the fleet manager once: it writes them.",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    names = [normal_name(name) for name in options.name]
    life = timedelta(days=options.days)
    certificate = ca.sign_server(key.public_key(), names, system_clock(), life)
    durable.make_folder(options.output)
    for name, content, mode in (
        ("ca.crt", ca.pem.encode(), 0o644),
        ("server.crt", certificate.encode(), 0o644),
        ("server.key", key_pem(key), KEY_MODE),
        ("crl.pem", lists.read_bytes(), 0o644),
        ("acl.txt", mosquitto.acl(options.managers).encode(), 0o644),
        ("mosquitto.conf", mosquitto.mtls_config().encode(), 0o644),
    ):
        durable.write(options.output / name, content, mode)
    return sorted(options.output.iterdir())


def _check_managers(count: int) -> None:
    if len(managers(count)) != count or count > 100:
        raise InvalidInputError(f"{count} fleet managers make no sense.", hint="Use 1 to 100.")
