"""Files that are whole or absent, and the folder of what can be computed again, with its bounds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    sizes = taken(folder)
    others = sum(size for path, size in sizes.items() if path != own)
    for path, size in sizes.items():
        if others + wanted > most and path != own:
            path.unlink(missing_ok=True)
            others -= size
    return most - others - sizes.get(own, 0)


def taken(folder: Path) -> dict[Path, int]:
    """Bytes on disk of a folder's files, the oldest first."""
    stats = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process made room
            stats.append((path.stat().st_mtime, path, path.stat().st_blocks * 512))
    return {path: size for _, path, size in sorted(stats)}
