"""Synthesised gates and readout matrices on disk, by digest of Q and of the noise.

safetensors, written beside and renamed; safe to delete at any time.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qrun.files import replaced
from qrun.quantum.circuits import Gates
from qrun.quantum.encoding import Floats

VERSION = "1"  # of synthesis and conventions: raise it and old entries are not found
COLUMNS = ("kind", "first", "second", "angle")
Arrays = dict[str, NDArray[np.generic]]


def digest(blocks: Floats) -> str:
    """Fingerprint of a set of blocks: shape and float32 values."""
    values = np.ascontiguousarray(blocks, np.float32)
    return hashlib.sha256(f"{VERSION}{values.shape}".encode() + values.tobytes()).hexdigest()[:24]


class BlockCache:
    """Arrays by kind and key below `folder`; None keeps nothing on disk."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def arrays(self, kind: str, key: str, compute: Callable[[], Arrays]) -> Arrays:
        if self.folder is None:
            return compute()
        path = self.folder / f"{kind}-{key}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError):  # absent, or cut short by a full disk: compute it again
            found = compute()
        with suppress(OSError, SafetensorError), replaced(path) as file:  # one that cannot be written is only slower
            save_file(found, file)
        return found

    def array(self, kind: str, key: str, compute: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
        return self.arrays(kind, key, lambda: {"value": np.ascontiguousarray(compute())})["value"]

    def gates(self, key: str, compute: Callable[[], list[Gates]]) -> list[Gates]:
        def pack() -> Arrays:
            gates = compute()
            joined = {name: np.concatenate([getattr(g, name) for g in gates]) for name in COLUMNS}
            return {**joined, "length": np.array([len(g.kind) for g in gates]), "qubits": np.array([gates[0].qubits])}

        found = self.arrays("gates", key, pack)
        cuts = np.cumsum(found["length"])[:-1]
        parts = [np.split(found[name], cuts) for name in COLUMNS]
        return [Gates(int(found["qubits"][0]), *columns) for columns in zip(*parts, strict=True)]
