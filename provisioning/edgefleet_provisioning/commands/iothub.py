"""`edgefleet iothub`: the fleet's Azure IoT hubs."""

from __future__ import annotations

import typer

app = typer.Typer(help="Look after the fleet's Azure IoT hubs.", no_args_is_help=True)
