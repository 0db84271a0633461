"""Every test says in one sentence what it shows."""

from __future__ import annotations

import ast

from tests.house import tree


def test_every_test_has_a_sentence():
    """A test function opens with a docstring that ends like a sentence."""
    silent = [
        f"{path}:{function.lineno} {function.name}"
        for path in tree.files(".py")
        if path.parts[0] == "tests" and path.name.startswith("test_")
        for function in tree.functions(path)
        if function.name.startswith("test_")
        and not (ast.get_docstring(function) or "").strip().endswith(".")
    ]
    assert silent == []


def test_every_test_module_can_be_imported_by_name():
    """Each folder of tests is a package, so that two files may share a name."""
    folders = {path.parent for path in tree.files(".py") if path.parts[0] == "tests"}
    assert [f for f in sorted(folders) if not (tree.ROOT / f / "__init__.py").is_file()] == []
