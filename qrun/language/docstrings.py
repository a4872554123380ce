"""Documentation that is already on the user's machine, as plain text: the offline corpora `pydoc` and `libdocs`.

    pydoc    pydoc_data.topics and the docstrings of the standard library's Python sources (about 2 MB)
    libdocs  the docstrings of installed scientific packages (tens of MB), on which `nano` was pretrained

Sources are parsed, never imported. One module is one document, so that a split by document keeps a module's
docstrings together and test text never shares a module with training text.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

from qrun.files import cache_folder, replaced

LIBRARIES = (
    "numpy", "scipy", "pandas", "matplotlib", "sklearn", "torch", "transformers", "datasets", "tokenizers",
    "huggingface_hub", "pennylane", "pennylane_lightning", "qiskit", "qiskit_aer", "qiskit_ibm_runtime", "mlflow",
    "sqlalchemy", "networkx", "sympy", "rustworkx", "autoray", "autograd", "fsspec", "pyarrow", "PIL", "jinja2",
    "flask", "werkzeug", "pydantic", "peft", "accelerate", "numba", "llvmlite", "nltk", "dill", "rich", "typer",
    "omegaconf", "hydra", "graphene", "docker", "requests", "aiohttp", "setuptools", "joblib",
)  # fmt: skip
SKIPPED_FOLDERS = {
    "test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "_vendor",
    "ensurepip",
}  # fmt: skip
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
SHORTEST = 40  # characters; shorter docstrings are labels, not text


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of one module's source in the order of the file, indentation removed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        tree = ast.parse(source)
    nodes = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    for node in sorted(nodes, key=lambda n: getattr(n, "lineno", 0)):
        text = ast.get_docstring(node, clean=False)
        if text is not None and len(cleaned := cleandoc(text).strip()) >= SHORTEST:
            yield cleaned


def module_documents(root: Path, seen: set[str]) -> list[str]:
    """One document per Python file below `root`, in the order of the paths. Docstrings in `seen` are left out, new ones
    join it."""
    documents = []
    for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
        if SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1]):
            continue
        try:
            texts = [t for t in docstrings(path.read_text(encoding="utf-8")) if t not in seen]
        except (SyntaxError, ValueError, RecursionError):  # templates and test fixtures that are not Python
            continue
        seen.update(texts)
        if texts:
            documents.append("\n\n".join(texts))
    return documents


def pydoc_documents() -> list[str]:
    """CPython's own documentation: the help topics, then one document per standard-library module."""
    import pydoc_data.topics as source

    root = standard_library()
    state = [sys.version, str(root), root.stat().st_mtime_ns, Path(source.__file__).stat().st_mtime_ns]

    def parse() -> list[str]:
        return [text.strip() for _, text in sorted(source.topics.items())] + module_documents(root, set())

    return kept("pydoc", state, parse)


def libdocs_documents() -> tuple[list[str], dict[str, int]]:
    """Documents of the installed packages among LIBRARIES, and how many characters each gave. Docstrings that also
    stand in the standard library (vendored copies) are left out: the two corpora share no docstring."""
    roots = {}
    for package in LIBRARIES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots[package] = Path(next(iter(spec.submodule_search_locations)))
    inits = [(name, root, root / "__init__.py") for name, root in roots.items()]
    state = [sys.version, *((name, str(root), init.stat().st_mtime_ns) for name, root, init in inits if init.is_file())]

    def parse() -> tuple[list[str], dict[str, int]]:
        seen: set[str] = set()
        module_documents(standard_library(), seen)
        documents, characters = [], {}
        for package, root in roots.items():
            found = module_documents(root, seen)
            documents += found
            characters[package] = sum(map(len, found))
        return documents, characters

    documents, characters = kept("libdocs", state, parse)
    return documents, characters


def kept(name: str, state: list[Any], parse: Callable[[], Any]) -> Any:
    """What `parse` gives, read from the cache where this code has parsed `state` before. Parsing takes 3 s (pydoc) or
    30 s (libdocs)."""
    rules = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    path = cache_folder() / f"{name}-{hashlib.sha256(json.dumps([*state, rules]).encode()).hexdigest()[:16]}.json"
    if path.is_file():
        with contextlib.suppress(ValueError, OSError):
            return json.loads(path.read_text(encoding="utf-8"))
    found = parse()
    with contextlib.suppress(OSError), replaced(path) as file:
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])
