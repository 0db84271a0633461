"""`edgefleet-cloud broker-config`: print the configuration of a broker that stands alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgefleet_cloud.broker import mosquitto
from edgefleet_cloud.broker.mosquitto import STANDARD_PATHS, MtlsPaths
from edgefleet_shared.errors import InvalidInputError


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
        parser.add_argument(f"--{name}-path", default=default, help=f"{meaning}; {default or '-'}")


def text(options: argparse.Namespace) -> str:
    """Return what `broker-config` prints.

    Raises:
        InvalidInputError: The options make no sense.
    """
    if options.port is not None and not 0 < options.port < 65536:
        raise InvalidInputError(f"{options.port} is not a port.", hint="Use 1 to 65535.")
    if not 1 <= options.managers <= 100:
        raise InvalidInputError(f"{options.managers} fleet managers make no sense.")
    if options.acl:
        return mosquitto.acl(options.managers)
    if options.mtls:
        paths = MtlsPaths(*(getattr(options, f"{name}_path") for name in MtlsPaths._fields))
        return mosquitto.mtls_config(paths, options.port or 8883)
    return mosquitto.loopback_config(options.port or 1883, Path(options.data_path))
