"""README and the other documents point at what is there."""

from __future__ import annotations

import re

import pytest

from edgefleet_shared.steps import Step
from tests.house.documents import LINK, anchors, documents, links, text_of
from tests.house.tree import ROOT

README = text_of("README.md")


def test_the_two_commands_stand_verbatim():
    """A newcomer can copy the two lines that CI runs."""
    for command in ("uv run edgefleet demo", "uv run pytest"):
        assert f"\n```sh\npip install uv && {command}\n```\n" in README


def test_the_twelve_words_link_to_one_file_each():
    """'Follow one model' has the words in order, each with exactly one link to its own file."""
    section = README.split("## Follow one model")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| [")]
    assert [re.match(r"\| \[(\w+)\]", row).group(1) for row in rows] == list(Step)
    targets = [LINK.findall(row) for row in rows]
    assert [len(found) for found in targets] == [1] * 12
    paths = [found[0] for found in targets]
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    assert len(set(paths)) == 12


@pytest.mark.parametrize("path", documents(), ids=str)
def test_links_lead_somewhere(path):
    """Every relative link names a file or folder that exists, and a heading that it has."""
    broken = []
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (ROOT / path.parent / name).resolve() if name else ROOT / path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_room_has_a_readme():
    """A room says in its own README what it is."""
    for room in ("shared", "agent", "cloud", "provisioning"):
        assert len(text_of(f"{room}/README.md").splitlines()) > 5


def test_folders_named_in_readme_exist():
    """The folders of the table are the folders of the tree."""
    for folder in re.findall(r"^\| `(\w+)/`", README, re.MULTILINE):
        assert (ROOT / folder).is_dir()
