"""Files that are whole or absent, and the folder of what can be computed again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qrun.errors import InputError


def cache_folder() -> Path:
    """XDG_CACHE_HOME/qrun; safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qrun"


def at_home(path: str) -> str:
    """A path with its ~ written out. Done once, where a path comes in: in a config, an option, an argument."""
    return os.path.expanduser(path)


def below(folder: Path, *parts: str) -> Path:
    """A place in a folder to write to. Raises InputError where a link leads out of the folder."""
    path = folder.joinpath(*parts)
    real, root = path.resolve(), folder.resolve()
    if not real.is_relative_to(root):
        raise InputError(f"{path}: a link there leads to {real}, out of {root}; nothing is written outside; remove it")
    return path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside `path` to write; it takes the place of `path` if the block succeeds, and is removed if not."""
    temporary = path.with_suffix(f".{os.getpid()}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
