"""Files that are whole or absent, and the folder of what can be computed again, with its bounds."""

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


def make_room(folder: Path, own: Path, most: int, wanted: int) -> int:
    """Remove the oldest files until `wanted` bytes of `own` and the others take `most`; bytes left to `own`. Who has a
    removed one open goes on with it."""
    stats = sorted((path.stat().st_mtime, path.stat().st_blocks * 512, path) for path in folder.iterdir())
    taken = sum(size for _, size, path in stats if path != own)
    for _, size, path in stats:
        if taken + wanted > most and path != own:
            path.unlink(missing_ok=True)
            taken -= size
    return most - taken - sum(size for _, size, path in stats if path == own)
