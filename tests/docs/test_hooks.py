"""What the pages' hooks take from the program is there; building the pages themselves needs mkdocs (`make docs`)."""

import ast
from importlib import import_module
from pathlib import Path

HOOKS = Path(__file__).parents[2] / "docs" / "hooks.py"


def test_hooks_import_what_there_is():
    taken = [
        (node.module, name.name)
        for node in ast.walk(ast.parse(HOOKS.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("qrun")
        for name in node.names
    ]
    assert len(taken) > 1 and all(hasattr(import_module(module), name) for module, name in taken), taken
