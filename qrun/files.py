"""Files that are whole or absent, and the folder of what can be computed again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """XDG_CACHE_HOME/qrun; safe to delete at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qrun"


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
