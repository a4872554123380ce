"""Files of runs: where they lie on this machine, or what is downloaded of them, once."""

import math
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from qrun.tracking.runs import Recorded


def artifact(client: Any, folder: Path, run: Recorded, name: str) -> Path | None:
    """A file or folder of a run's artifacts where it lies, or below `downloaded` in the results folder, kept there
    under the run's id and end; a file within a folder with the whole folder, which would else pass for kept."""
    parts = urlsplit(run.location)
    if parts.scheme in ("", "file"):
        path = Path(url2pathname(parts.path)) / name
        return path if path.exists() else None
    ended = math.isfinite(run.seconds)
    moment = round(1000 * (run.started + run.seconds)) if ended else 0
    below, whole = folder / "downloaded" / f"{run.run_id}-{moment}", PurePosixPath(name).parts[0]
    kept, wanted = below / whole, below / name
    if ended and kept.exists():
        return wanted if wanted.exists() else None
    if whole not in {entry.path for entry in client.list_artifacts(run.run_id)}:
        return None
    below.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=below) as aside:
        client.download_artifacts(run.run_id, whole, aside)
        if not ended:  # it may have another by now
            shutil.rmtree(kept, ignore_errors=True)
            kept.unlink(missing_ok=True)
        with suppress(OSError):  # another process put its folder there first
            os.replace(Path(aside) / whole, kept)
    return wanted if wanted.exists() else None
