"""A fleet's owner: the fleet folder, a real fleet manager, and the command line that knows both."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuf.ngclient import Updater

from edgefleet_shared import bundle
from edgefleet_shared.bundle import BundleFetcher
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder
from tests.provisioning.conftest import Cli


class Fleet:
    """A fleet folder of the owner, its server, and the command line that knows both."""

    def __init__(self, path: Path) -> None:
        self.folder = FleetFolder(path, ("digits", "faces"))
        self.cloud = RunningCloud(self.folder)
        self.cli = Cli()
        self.cli.arguments = ["--fleet", str(path)]
        text = f'server = "{self.cloud.url}"\ntoken = "{self.cloud.token}"\n'
        (path / "offline" / "client.toml").write_text(text)

    def keys(self) -> dict[str, dict]:
        """Return `keys list` by name."""
        return {key["name"]: key for key in self.cli.json("keys", "list")}

    def roles(self) -> dict[str, dict]:
        """Return `trust show` by role."""
        return {role["role"]: role for role in self.cli.json("trust", "show")}

    def signs(self, role: str) -> set[str]:
        """Return the names of the keys that sign a role."""
        return {name for name, key in self.keys().items() if role in key["signs"]}

    def device(self, tmp_path: Path, target: str = ""):
        """Refresh a device of a cold cache from the pinned root, by python-tuf's own client."""
        cache = tmp_path / "device"
        shutil.rmtree(cache, ignore_errors=True)
        packed = self.cloud.client.get("/v1/trust/bundle").content
        updater = Updater(
            str(cache), "https://fleet/", fetcher=BundleFetcher(bundle.decode(packed)),
            bootstrap=(self.folder.path / "offline/metadata/1.root.json").read_bytes(),
        )  # fmt: skip
        updater.refresh()
        return updater.get_targetinfo(target) if target else updater

    def event(self) -> dict:
        """Return the newest event."""
        return self.cloud.client.get("/v1/events", params={"order_by": "id desc"}).json()["items"][
            0
        ]
