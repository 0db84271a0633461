"""Every command line in the documents is one that the programs take."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from typing import Any

import pytest
from typer.main import get_command

from edgefleet_agent.cli import main as agent_main
from edgefleet_cloud.__main__ import main as cloud_main
from edgefleet_provisioning.cli import app
from tests.house.documents import PROGRAMS, commands, documents

LINES = sorted({(tuple(words), whole) for path in documents() for words, whole in commands(path)})


@cache
def help_of(program: str, *words: str) -> str:
    """Return what `PROGRAM SUBCOMMAND --help` prints; fails if it is no command."""
    main = {"edgefleet-agent": agent_main, "edgefleet-cloud": cloud_main}[program]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0, words
    return out.getvalue()


def split(arguments: list[str], takes_value: dict[str, bool]) -> list[str]:
    """Return the positional arguments; an unknown option fails."""
    positional = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name, equals, _ = word.partition("=")
        assert name in takes_value, f"{name} is not one of {sorted(takes_value)}"
        if takes_value[name] and not equals:
            next(rest)
    return positional


def check_edgefleet(words: list[str], *, whole: bool) -> None:
    """Follow a line of `edgefleet` down its tree of commands and look at what is left."""
    command: Any = get_command(app)
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    takes_value = {
        option: not param.is_flag
        for param in command.params
        if param.param_type_name == "option"
        for option in [*param.opts, *param.secondary_opts]
    } | {"--help": False}
    given = split(rest, takes_value)
    places = [param for param in command.params if param.param_type_name == "argument"]
    assert len(given) <= len(places) or any(place.nargs == -1 for place in places)
    if whole:
        assert len(given) >= sum(place.required for place in places)


@pytest.mark.parametrize(
    ("line", "whole"), LINES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_the_command_exists(line, whole):
    """The program knows the subcommand and every option that the line names."""
    words = list(line)
    if words[0] == "edgefleet":
        check_edgefleet(words, whole=whole)
        return
    if words[1].startswith("-"):
        assert words[1] in help_of(words[0])
        return
    text, rest = help_of(*words[:2]), words[2:]
    if rest and re.search(rf"^    {re.escape(rest[0])} ", text, re.MULTILINE):
        text = help_of(*words[:3])  # a subcommand of a subcommand
    for word in rest:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}(?![\w-])", text), word


def test_there_are_commands_to_check():
    """The documents show each of the three programs."""
    assert {line[0] for line, _ in LINES} == set(PROGRAMS)
