"""docs/reference.md names every key, state, topic and code that the code knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest

from edgefleet_agent.config import Config as AgentConfig
from edgefleet_cloud.config import Config as CloudConfig
from edgefleet_cloud.hub_config import IotHub
from edgefleet_shared import processing, topics
from edgefleet_shared.messages import Policy
from edgefleet_shared.package import Batching
from edgefleet_shared.states import DeploymentState, RolloutState, WaveState
from tests.house import tree
from tests.house.documents import text_of

TEXT = text_of("docs/reference.md")


def section(title: str) -> str:
    """Return the part of the reference under a heading of level 2."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def keys(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every key of a configuration with its default, tables as `table.key`."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.default, msgspec.Struct):
            yield from keys(type(field.default), f"{field.encode_name}.")
        else:
            empty = field.default_factory is not msgspec.NODEFAULT
            yield prefix + field.encode_name, () if empty else field.default


def rows(title: str) -> dict[str, str]:
    """Return a section's table: first cell to second cell, without backquotes."""
    found = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", section(title), re.MULTILINE)
    return {key: value.strip().strip("`") for key, value in found}


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("agent.toml", AgentConfig),
        ("cloud.toml", CloudConfig),
        ("iothub", IotHub),
        ("Policy", Policy),
        ("Batching", Batching),
    ],
)
def test_every_configuration_key_is_listed_with_its_default(title, kind):
    """The table has each key once, with the default that the code has, and no other."""
    listed = rows(title)
    assert listed.keys() == dict(keys(kind)).keys()
    for key, default in keys(kind):
        if default is msgspec.NODEFAULT:
            assert listed[key] == "required"
        elif default == ():
            assert listed[key] == "none", key
        elif isinstance(default, bool):
            assert listed[key] == str(default).lower(), key
        elif isinstance(default, str):
            assert listed[key] == (default or "empty"), key
        else:
            assert float(listed[key].replace(" ", "")) == default, key


def step_fields() -> Iterator[tuple[str, object]]:
    """Yield every field of every processing step as `step.field`, with its default."""
    for kind in (*get_args(processing.Pre), *get_args(processing.Post)):
        for field in msgspec.structs.fields(kind):
            default = field.default if field.default_factory is msgspec.NODEFAULT else ()
            yield f"{kind.__struct_config__.tag}.{field.name}", default


def test_every_processing_step_is_listed():
    """A publisher finds each step and field, with the default that the code has."""
    listed, fields = rows("Processing"), dict(step_fields())
    assert listed.keys() == fields.keys()
    words = {msgspec.NODEFAULT: "required", "": "empty", True: "true", False: "false"}
    for key, default in fields.items():
        if default is msgspec.NODEFAULT or isinstance(default, str | bool):
            assert listed[key] == words.get(default, default), key
        elif isinstance(default, tuple):
            assert listed[key] == (str(default[0]) if default else "none"), key
        elif isinstance(default, int | float):
            assert float(listed[key]) == default, key


@pytest.mark.parametrize("states", [DeploymentState, WaveState, RolloutState])
def test_every_state_is_listed(states):
    """No state of a deployment, wave or rollout is left to guess."""
    assert [s for s in states if f"`{s}`" not in section("States")] == []


def test_every_topic_is_listed():
    """The table of topics spells them as the code does."""
    one = [topics.desired, topics.renew, topics.get, topics.reported]
    spelled = [topic("{device}") for topic in one]
    spelled += [topics.stream("{device}", "{stream}"), topics.presence("{device}")]
    assert list(rows("Topics")) == spelled


def codes() -> set[str]:
    """Return every code that the packages give to an error or an outcome, as literals."""
    found = set()
    for path in tree.files(".py"):
        if path.parts[0] not in tree.PACKAGES or "demo" in path.parts:
            continue
        for node in ast.walk(tree.parse(path)):
            if isinstance(node, ast.keyword) and node.arg == "code":
                found |= _texts(node.value)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(t, ast.Name) and t.id == "default_code" for t in targets):
                    found |= _texts(node.value)
    return found


def _texts(node: ast.expr | None) -> set[str]:
    return {
        part.value
        for part in ast.walk(node or ast.Pass())
        if isinstance(part, ast.Constant)
        and isinstance(part.value, str)
        and re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", part.value)
    }


def test_every_error_code_is_listed():
    """A code that somebody meets in a log or an answer can be looked up."""
    listed = set(re.findall(r"`([a-z][a-z0-9_]+)`", section("Error codes")))
    assert sorted(codes() - listed) == []
