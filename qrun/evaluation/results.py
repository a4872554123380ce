"""A study's numbers as one table: a row per cell of the grid, axes and metrics as columns.

cells.csv and units.json are all that numbers and grades are made of. `units` holds what an interval over documents or
questions needs: per key, lists of one number a unit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qrun.errors import InputError

CELLS, UNITS = "cells.csv", "units.json"
IDENTITY = ("git_sha", "git_dirty", "code", "config_hash", "protocol_fingerprint", "model_weights", "model_config",
            "tokenizer", "data_digest")  # fmt: skip
WORDS = dict.fromkeys(("key", "run_id", "run", *IDENTITY), str)  # hex digits such as 12e45678 are no numbers


@dataclass(frozen=True)
class Results:
    """Rows, and per key the numbers of each unit."""

    table: pd.DataFrame
    units: Mapping[str, Mapping[str, Sequence[float]]]

    def unit(self, key: str, name: str) -> NDArray[np.float64]:
        """One list of a cell as an array."""
        return np.asarray(self.units[key][name], float)

    def write(self, folder: Path) -> None:
        """cells.csv and units.json; floats in full."""
        self.table.to_csv(folder / CELLS, index=False, lineterminator="\n")
        (folder / UNITS).write_text(json.dumps(self.units, sort_keys=True, separators=(",", ":")) + "\n")


def read(folder: Path) -> Results:
    """What `write` wrote. Raises InputError for a missing or broken file."""
    try:
        table = pd.read_csv(folder / CELLS, float_precision="round_trip", dtype=WORDS)
        return Results(table, json.loads((folder / UNITS).read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no readable {CELLS} and {UNITS} ({' '.join(str(error).split())[:160]})") from error
