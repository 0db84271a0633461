"""How long files and functions are: `python -m tests.house.sizes` names what is over the aims."""

from __future__ import annotations

from pathlib import Path

from tests.house.tree import ROOT, body_lines, files, functions

FILE_AIM, FILE_END = 250, 400
BODY_AIM, BODY_END = 30, 50


def long_files(limit: int) -> list[tuple[int, Path]]:
    """Return the Python files of more than `limit` lines, longest first."""
    sizes = ((len((ROOT / path).read_text().splitlines()), path) for path in files(".py"))
    return sorted((pair for pair in sizes if pair[0] > limit), reverse=True)


def long_bodies(limit: int) -> list[tuple[int, str]]:
    """Return the functions whose bodies have more than `limit` lines, longest first.

    A migration is a list of tables, written once and never read as a program; it is left out.
    """
    found = [
        (body_lines(function), f"{path}:{function.lineno} {function.name}")
        for path in files(".py")
        if "migrations" not in path.parts
        for function in functions(path)
    ]
    return sorted((pair for pair in found if pair[0] > limit), reverse=True)


def main() -> None:
    """Print what is over the aims; nothing fails by that."""
    print(f"files over {FILE_AIM} lines (the end is {FILE_END}):")
    for count, path in long_files(FILE_AIM):
        print(f"  {count:4d} {path}")
    print(f"bodies over {BODY_AIM} lines (the end is {BODY_END}):")
    for count, name in long_bodies(BODY_AIM):
        print(f"  {count:4d} {name}")


if __name__ == "__main__":
    main()
