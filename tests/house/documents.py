"""The documents: their links, their headings, the commands that they tell people to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOT, files

PROGRAMS = ("edgefleet", "edgefleet-agent", "edgefleet-cloud")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(path: Path | str) -> str:
    """Return a document's text."""
    return (ROOT / path).read_text()


def documents() -> tuple[Path, ...]:
    """Return every Markdown file of the tree."""
    return files(".md")


def links(path: Path) -> Iterator[str]:
    """Yield the relative links of a document, code aside."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text_of(path)))
    for target in LINK.findall(prose):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands(path: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield every command line of ours that a document shows, and whether it is shown whole.

    In a fence it is what people type; `in a sentence` it may name a command and one option.
    """
    text = text_of(path)
    fenced = [
        line for _, body in FENCE.findall(text) for line in body.replace("\\\n", " ").splitlines()
    ]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line, whole in [*((line, True) for line in fenced), *((line, False) for line in inline)]:
        for part in re.split(r"&&|\|\||[|;]|\$\(", line):
            words = _words(part)
            if len(words) > 1 and words[0] in PROGRAMS:
                yield words, whole


def _words(line: str) -> list[str]:
    """Split a shell line; variables, sudo and uv run before the program, and its path, go."""
    try:
        words = shlex.split(line.strip().rstrip(")"), comments=True)
    except ValueError:
        return []
    while words and (words[0] in {"sudo", "exec", "uv", "run"} or "=" in words[0]):
        words = words[1:]
    if words[:1] == ["-u"]:
        words = words[2:]
    return [words[0].rpartition("/")[2], *words[1:]] if words else []
