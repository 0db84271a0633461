"""The double as a process: `python -m edgefleet_provisioning.iothub_double --folder F`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgefleet_provisioning.iothub_double.double import AzureDouble
from edgefleet_provisioning.iothub_double.limits import TIERS

ENDS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: list[str] | None = None) -> None:
    """Run the double until SIGTERM or Ctrl-C.

    Args:
        arguments: Of the command line; None: those of this process.
    """
    asked = _parser().parse_args(arguments)
    folder: Path = asked.folder.absolute()
    ready: Path = (asked.ready_file or folder / "ready.json").absolute()
    ready.unlink(missing_ok=True)
    authorities = [_read(path) for path in asked.trust]
    # Waited for, not handled: of two signals at once the second handler would lock itself out.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    with ExitStack() as stack:
        try:
            double = AzureDouble(
                folder,
                asked.hub or ["fleet-a"],
                tier=asked.tier,
                units=asked.units,
                websockets=asked.websockets,
                address=asked.address,
            )
            stack.enter_context(double)
        except OSError as error:
            sys.exit(
                f"The double cannot listen or write: {error}. Try another --address 127.X.Y.Z or "
                "another --folder; port 443 (--websockets) takes root."
            )
        for hub in double.azure.hubs.values():
            for pem in authorities:
                hub.registry.trust(pem)
        _write(ready, json.dumps(facts(double, folder), indent=2).encode())
        signal.sigwait(ENDS)
    ready.unlink(missing_ok=True)


def facts(double: AzureDouble, folder: Path) -> dict[str, Any]:
    """Write the double's connection strings into a folder and return what its users need to know.

    The facts of the first hub stand at the top too.

    Args:
        double: A double that runs.
        folder: Takes a file for each secret, readable by its owner alone.
    """
    service = double.service
    hubs = []
    for hub in double.azure.hubs.values():
        registry = hub.connection_string("registryReadWrite")
        hubs.append(
            {
                "name": hub.name,
                "host": hub.host,
                "address": double.address(hub.host),
                "gateway": double.gateway(hub.host),
                "rest": f"{service.address}:{service.rest.hub_port(hub.host)}",
                "connection_string_file": _secret(
                    folder / f"{hub.name}-service", hub.connection_string()
                ),
                "registry_connection_string_file": _secret(
                    folder / f"{hub.name}-registry", registry
                ),
                "events_connection_string_file": _secret(
                    folder / f"{hub.name}-events", service.events_string(hub)
                ),
            }
        )
    dps = double.provisioning
    return {
        **hubs[0],
        "hubs": hubs,
        "pid": os.getpid(),
        "ca": str(double.ca_file.absolute()),
        "mqtt_port": 8883,
        "dps_host": dps.host,
        "dps_scope": dps.id_scope,
        "dps_rest": f"{service.address}:{service.rest.port}",
        "dps_connection_string_file": _secret(folder / "dps-service", dps.connection_string()),
        "authority": f"{service.address}:{service.rest.port}",
        "tenant": service.issuer.tenant,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgefleet_provisioning.iothub_double",
        description="A double of Azure IoT Hub on this machine, for demo and tests.",
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="its certificates and connection strings")
    add("--ready-file", type=Path, help="written when it answers; FOLDER/ready.json by default")
    add("--address", default="", help="loopback address of the first hub; a free one by default")
    add("--hub", action="append", metavar="NAME", help="name of a hub; may be repeated")
    add("--trust", action="append", type=Path, default=[], metavar="PEM", help="CA of devices")
    add("--tier", default="S1", choices=sorted(TIERS), help="of each hub (S1)")
    add("--units", type=_units, default=1, help="of each hub (1)")
    add("--websockets", action="store_true", help="serve on port 443 too, which takes root")
    return parser


def _units(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 200:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 to 200 units")
    return int(text)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}. Give --trust the PEM file of a CA.")


def _secret(path: Path, text: str) -> str:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text + "\n")
    return str(path)


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(data)
    fresh.replace(path)


if __name__ == "__main__":
    main()
