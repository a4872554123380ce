"""Synthesised circuits on disk, by digest of Q.

safetensors, written beside and renamed; safe to delete at any time.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qrun.files import replaced
from qrun.quantum.circuits import Circuits
from qrun.quantum.encoding import Floats
from qrun.quantum.wiring import Wiring

VERSION = "5"  # of synthesis and conventions: raise it and old entries are not found
FIELDS = ("shape", "wires", "offsets", "split", "kind", "first", "second", "angle", "parameter")  # of Circuits
Arrays = dict[str, NDArray[Any]]


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

    def circuits(self, blocks: Floats, wiring: Wiring) -> Circuits:
        """The circuits of blocks, synthesised once."""
        synthesis = wiring.synthesis + "-reference" * wiring.reference
        key = f"{digest(blocks)}-{wiring.coupling}-{synthesis}-{wiring.mixture(blocks.shape[-1])}"

        def compute() -> Arrays:
            found = wiring.circuits(blocks)
            before = {} if found.before is None else {"before": found.before}
            return {"qubits": np.array([found.qubits]), **{name: getattr(found, name) for name in FIELDS}, **before}

        found = self.arrays("circuits", key, compute)
        circuits = Circuits(int(found["qubits"][0]), *(found[name] for name in FIELDS))
        return replace(circuits, before=found.get("before"))
