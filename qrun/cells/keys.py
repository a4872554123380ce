"""A cell's key: a hash of everything that makes its number, and of nothing else.

    key = hash(task, keys of what it needs, digests of weights, config, tokenizer and text, versions, code)

The code counts by its syntax trees: those of the task's modules and of all they import, without docstrings and
comments, and without the rooms that only show or store numbers. Touch the physics of noise and the cells that ran under
noise are computed again; touch a comment, the report or another room and none is.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from importlib.metadata import version
from pathlib import Path

from qrun.cells.cell import Cell
from qrun.config.schema import DataConfig, ModelConfig
from qrun.language import corpus
from qrun.language.corpus import Corpus
from qrun.language.docstrings import DOCUMENTED
from qrun.language.identity import Identity, identify
from qrun.language.models import check_model, model_folder

ROOT = Path(__file__).resolve().parents[1]
SILENT = ("cli", "config", "report", "tracking", "studies", "cells", "errors")  # rooms that cannot change a number
VERSIONS = ("torch", "transformers")


@cache
def code_fingerprint(modules: tuple[str, ...]) -> str:
    """12 hex digits over the syntax trees of `modules` (dotted names below qrun) and of what they import."""
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name], imported = read_module(name)
            waiting += imported
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:12]


@cache
def read_module(name: str) -> tuple[str, list[str]]:
    """Digest of a module's syntax tree, and the modules of loud rooms that it imports when it runs."""
    digest, imported = _read(_source(name).read_text(encoding="utf-8"))
    found = [module for module in imported if module.split(".")[0] not in SILENT and _source(module).is_file()]
    return digest, found


@cache
def _read(source: str) -> tuple[str, list[str]]:
    """Digest of a source's syntax tree, and all that it may import."""
    tree = ast.parse(source)
    imported = [found for node in _running(tree) for found in _imports(node)]
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imported


def _running(node: ast.AST) -> Iterable[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from _running(child)


def _imports(node: ast.AST) -> list[str]:
    """What a node imports from qrun, as dotted names below it: modules, and names that may be modules."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qrun."):
        module = (node.module or "").removeprefix("qrun.")
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return [name.removeprefix("qrun.") for name in names if name.startswith("qrun.")]


def _source(name: str) -> Path:
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def plain(value: object) -> object:
    """Dataclasses and enums as what JSON knows: compose.plain without OmegaConf's checks, twenty times as fast."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


class Sources:
    """Digests of models and texts, each read once; texts stay open for whoever computes in this process."""

    def __init__(self) -> None:
        self._identities: dict[str, Identity] = {}
        self._texts: dict[str, Corpus] = {}

    def identity(self, config: ModelConfig) -> Identity:
        """Of a model's weights, config and tokenizer, from its files; no weight is loaded."""
        key = json.dumps(plain(config))
        if key not in self._identities:
            check_model(config)
            self._identities[key] = identify(model_folder(config))
        return self._identities[key]

    def text(self, config: DataConfig) -> Corpus:
        """The corpus of a config."""
        key = json.dumps(plain(config))
        if key not in self._texts:
            self._texts[key] = corpus.load(config)
        return self._texts[key]

    def model(self, config: ModelConfig, made: str | None) -> dict[str, object]:
        """What of a model makes a number: its identity, or the key `made` of the cell that makes it; dtype, and what
        its weights are quantised to."""
        own = {"quantization": config.quantization.value} if config.quantization else {}
        return {"model": made or plain(self.identity(config)), "dtype": config.dtype.value, **own}

    def digest(self, config: DataConfig, *splits: str) -> list[object]:
        """Digests of parts of a text, and what else its protocol's fingerprint has: name, markup, whether cleaned."""
        text = self.text(config)
        return [text.name, text.wikitext, text.cut is not None, *(text.digests[split] for split in splits)]


class Keys:
    """Keys of cells, each made once."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._keys: dict[int, tuple[Cell, str]] = {}  # the cell is kept, so that its id stays its own

    def of(self, cell: Cell) -> str:
        """16 hex digits."""
        if id(cell) not in self._keys:
            needs = {name: self.of(need) for name, need in cell.needs.items()}
            parts = {
                "kind": cell.task.kind, "task": plain(cell.task.identity(self.sources, needs)), "needs": needs,
                "versions": [version(package) for package in VERSIONS],
                "code": code_fingerprint(cell.task.modules),
            }  # fmt: skip
            digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
            self._keys[id(cell)] = (cell, digest)
        return self._keys[id(cell)][1]
