"""python-tuf's client as a device runs it: given time, files of its own, nothing torn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError

from edgefleet_agent.trust import updater
from edgefleet_agent.trust.updater import DurableUpdater
from edgefleet_shared.bundle import BundleFetcher
from tests.agent.world import World

NOW = datetime.now(UTC)


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


def refreshed(world, folder, now):
    """Return a client that has read the world's repository at that time."""
    client = DurableUpdater(folder, BundleFetcher(world.files), "x:///", world.first_root, now)
    client.refresh()
    return client


def test_python_tufs_private_clock_is_where_we_set_it(world, tmp_path):
    """The updater judges expiry by the time that it is given, a private attribute of python-tuf."""
    refreshed(world, tmp_path, NOW)
    with pytest.raises(ExpiredMetadataError):
        refreshed(world, tmp_path, NOW + timedelta(days=365))


def test_a_python_tuf_that_keeps_its_clock_elsewhere_is_refused(world, tmp_path, monkeypatch):
    """A version of python-tuf without that attribute must not run on a clock we cannot set."""
    theirs = updater.TrustedMetadataSet
    monkeypatch.setattr(theirs, "__init__", renamed(theirs.__init__))
    with pytest.raises(RepositoryError, match="reference time"):
        refreshed(world, tmp_path, NOW)


def renamed(init):
    """Return python-tuf's constructor, as if a new version had renamed the attribute."""

    def made(self, *given, **named):
        init(self, *given, **named)
        self.moment = self.__dict__.pop("reference_time")

    return made


def test_the_metadata_folder_is_a_plain_tuf_clients(world, tmp_path):
    """Newest files lie unversioned as files of their own, old roots in a folder."""
    world.publish("1.0.0")
    world.root.version = 2
    world.files["2.root.json"] = world.sign(world.root, "root")
    client = refreshed(world, tmp_path, NOW)
    assert client.get_targetinfo("models/digits/1.0.0/manifest.json") is not None
    found = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert set(found) == {
        "root.json", "timestamp.json", "snapshot.json", "targets.json", "publisher%2Fdigits.json"
    }  # fmt: skip
    assert found["root.json"] == world.files["2.root.json"]
    assert not (tmp_path / "root.json").is_symlink()
    assert {p.name for p in (tmp_path / "root_history").iterdir()} == {"1.root.json", "2.root.json"}
