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


def commands(path: Path) -> Iterator[list[str]]:
    """Yield every command line of ours that a document shows, in fences and in `code`."""
    text = text_of(path)
    lines = [
        line for _, body in FENCE.findall(text) for line in body.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in lines:
        for part in re.split(r"&&|\|\||[|;]|\$\(", line):
            words = _words(part)
            if len(words) > 1 and words[0] in PROGRAMS:
                yield words


def _words(line: str) -> list[str]:
    """Split a shell line; what stands before our program (variables, sudo, uv run) is dropped."""
    try:
        words = shlex.split(line.strip().rstrip(")"), comments=True)
    except ValueError:
        return []
    for index, word in enumerate(words):
        if word in PROGRAMS:
            before = words[:index]
            known = {"sudo", "-u", "edgefleet", "uv", "run", "exec"}
            if all(w in known or "=" in w for w in before):
                return words[index:]
            return []
    return []
