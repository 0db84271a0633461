"""What uv resolves with and what pip is given are the same exact versions."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement

from tests.house.tree import PACKAGES, ROOT

PINNED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"].get(
    "constraint-dependencies", []
)
TEXT = (ROOT / "constraints.txt").read_text()


def requirements(folder: str) -> list[Requirement]:
    """Return every requirement of a distribution or, at the root, of the tools too."""
    document = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())
    project = document["project"]
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values(),
             *document.get("dependency-groups", {}).values()]  # fmt: skip
    return [Requirement(text) for texts in lists for text in texts]


def test_both_lists_are_one():
    """constraints.txt pins exactly what `[tool.uv] constraint-dependencies` pins."""
    written = re.findall(r"^([A-Za-z0-9][^\\\n]*?)\s*\\?$", TEXT, re.MULTILINE)
    assert written == PINNED
    assert sorted(PINNED, key=lambda text: Requirement(text).name) == PINNED


def test_every_pin_is_exact_and_hashed():
    """Each entry names one version and at least one sha256; no line names an index or a host."""
    entries = re.split(r"\n(?=\S)", TEXT.strip())
    for entry in entries:
        (exact,) = Requirement(entry.split("\\")[0].strip()).specifier
        assert exact.operator == "=="
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in TEXT
    assert "--index" not in TEXT


def test_everything_we_ask_for_is_pinned():
    """No distribution and no tool depends on a package that floats; every pin fits the range.

    Of what is asked for on some machines alone, one pin must: the others are for other machines.
    """
    pins = {}
    for text in PINNED:
        pin = Requirement(text)
        pins.setdefault(pin.name, []).append(next(iter(pin.specifier)).version)
    ours = {f"edgefleet-{name}" for name in ("shared", "agent", "cloud")} | {"edgefleet"}
    asked = [r for folder in [".", *PACKAGES] for r in requirements(folder) if r.name not in ours]
    floating = [str(r) for r in asked if r.name not in pins]
    fits = {r: [r.specifier.contains(v) for v in pins.get(r.name, [])] for r in asked}
    outside = [str(r) for r, found in fits.items() if not (any if r.marker else all)(found)]
    assert (floating, outside) == ([], [])
