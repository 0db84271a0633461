"""From the configuration to what runs containers; nothing is started."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edgefleet_agent.config import Config
from edgefleet_agent.containers.client import KeeperClient, Settings
from edgefleet_agent.containers.lifetimes import Containers
from edgefleet_shared.errors import InvalidInputError


def make(config: Config, fleet: str, device: str) -> Containers:
    """Return what runs this device's containers; docker's SDK is looked for and not imported.

    Raises:
        InvalidInputError: The password file of a registry cannot be read.
    """
    given, keeper, why_not = config.containers, None, ""
    if not given.socket:
        why_not = "[containers] socket is empty"
    elif find_spec("docker") is None:
        why_not = "the docker SDK is not installed"
    else:
        logins = {
            host: (registry.username, _first_line(Path(registry.password_file)))
            for host, registry in given.registries.items()
        }
        keeper = KeeperClient(Settings(f"unix://{given.socket}", fleet, device, logins))
    run, ledger = config.run / "containers", config.state / "containers.json"
    return Containers(keeper, run, ledger, given.user, config.inference.threads, why_not)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().partition("\n")[0].strip()
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"The password file {path} cannot be read: {error}.",
            code="configuration",
            hint="[containers.registries] names a file that holds the password alone.",
        ) from error
