"""The agent's image: what it is built from exists, and it runs as nobody."""

from __future__ import annotations

import re
import tomllib

import yaml

from tests.house.tree import ROOT

CONTAINERFILE = (ROOT / "images/agent/Containerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "images/compose.yaml").read_text())


def test_what_is_copied_is_there_and_let_through():
    """Every COPY from the checkout names what exists and what .dockerignore does not hold back."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(\S+) ", CONTAINERFILE, re.MULTILINE)
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    assert "*" in ignored


def test_the_extras_are_the_agents():
    """Image and compose file ask for the same extras, and each is one of the agent's."""
    project = tomllib.loads((ROOT / "agent/pyproject.toml").read_text())["project"]
    extras = re.search(r"^ARG EXTRAS=(\S+)$", CONTAINERFILE, re.MULTILINE)[1].split(",")
    assert COMPOSE["services"]["agent"]["build"]["args"]["EXTRAS"] == ",".join(extras)
    assert "iothub" in extras
    assert set(extras) <= project["optional-dependencies"].keys()


def test_it_runs_as_nobody_and_keeps_its_state():
    """Its user is a number other than 0, the same everywhere, and its state lies in volumes."""
    user, group = re.search(r"^USER (\d+):(\d+)$", CONTAINERFILE, re.MULTILINE).groups()
    assert int(user) > 0
    assert f"--uid {user} --gid {group}" in CONTAINERFILE
    volumes = re.search(r"^VOLUME \[(.*)\]$", CONTAINERFILE, re.MULTILINE)[1]
    mounted = [one.partition(":")[2] for one in COMPOSE["services"]["agent"]["volumes"]]
    assert re.findall(r'"([^"]+)"', volumes) == mounted
    assert COMPOSE["services"]["agent"]["read_only"]
