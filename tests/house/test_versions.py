"""One version for all: distributions, modules, change log."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module, metadata

import pytest

from tests.house.tree import PACKAGES, ROOT


def project(folder: str) -> dict:
    """Return the `[project]` table of a distribution."""
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


VERSION = project(".")["version"]


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_distribution_has_the_version_of_all(folder):
    """pyproject, `__version__` and what is installed agree with the workspace's version."""
    about = project(folder)
    assert about["version"] == VERSION
    assert import_module(PACKAGES[folder]).__version__ == VERSION
    assert metadata.version(about["name"]) == VERSION


def test_rooms_pin_shared_to_their_own_version():
    """Agent, cloud and provisioning ask for the contract of exactly their version."""
    for folder in PACKAGES.keys() - {"shared"}:
        assert f"edgefleet-shared=={VERSION}" in project(folder)["dependencies"]


def test_the_change_log_knows_the_version():
    """CHANGELOG opens with [Unreleased]; the newest release below it is this version, dated."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d", headings[1])
