"""Commands for whoever stands beside the device: look, ask, check, lock, collect.

None needs the cloud; all but `infer` work with agentd down. What a command needs is imported when
it runs, so that `status` stays quick.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any, NamedTuple

from edgefleet_agent.config import Config
from edgefleet_agent.inspection import denied


class Command(NamedTuple):
    """A command: its module, the functions in it that add arguments ('' = none) and that run.

    `device`: it has no sense where no device is enrolled, and must not seem to have one.
    """

    module: str
    help: str
    register: str = ""
    run: str = "run"
    device: bool = True


COMMANDS = {
    "status": Command("standing", "show what runs here", device=False),
    "models": Command("models", "show the models of this device: versions, variants, load"),
    "journal": Command("journal", "show where every slot stands on disk", "register"),
    "infer": Command(
        "infer", "ask a model by hand: infer MODEL --input NAME=VALUE", "register", device=False
    ),
    "verify": Command("verify", "check every signature and every byte on this device again"),
    "lock": Command("locking", "let no model swap or stop until `unlock`", "register", "run_lock"),
    "unlock": Command("locking", "let models change again", run="run_unlock"),
    "iotedge": Command(
        "edge", "print the manifest that runs the agent on Azure IoT Edge", "register", device=False
    ),
    "collect": Command(
        "collect",
        "write an archive for whoever looks for a fault; no secrets",
        "register",
        device=False,
    ),
}


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
) -> None:
    """Add every command of this room."""
    for name, command in COMMANDS.items():
        parser = commands.add_parser(name, parents=[shared], help=command.help)
        parser.add_argument("--json", action="store_true", help="one JSON object")
        if command.register:
            getattr(_module(command), command.register)(parser)
        parser.set_defaults(run=_runner(command))


def _runner(command: Command) -> Any:
    def run(config: Config, options: argparse.Namespace) -> int:
        if command.device:
            denied.check_device(config)
        return int(getattr(_module(command), command.run)(config, options))

    return run


def _module(command: Command) -> Any:
    return import_module(f"edgefleet_agent.inspection.{command.module}")
