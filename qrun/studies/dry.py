"""`--dry-run` of a study: its cells at the model's true shape, without weights, text or store."""

from collections import Counter
from typing import Any

from qrun.adapters.sites import count_parameters, select, sites
from qrun.cells.pool import Cell
from qrun.language.models import model_shape
from qrun.report.screen import say


def show(verb: str, cells: list[Cell], said: list[str]) -> dict[str, Any]:
    """Print what would run, and return label -> trained parameters where the shape tells them."""
    counts: dict[str, Any] = {}
    for line in said:
        say(line)
    for cell in cells:
        config: Any = getattr(cell.work, "config", None)
        shape = model_shape(config.model) if hasattr(config, "adapter") else None
        counts[cell.label] = None
        if shape is not None:
            selected = select(sites(shape), config.adapter.projections, config.adapter.layers)
            counts[cell.label] = count_parameters(selected, config.adapter)
        say(f"{cell.label}" + (f": {counts[cell.label]:,} parameters" if counts[cell.label] else ""))
    kinds = Counter(type(cell.work).__name__ for cell in cells)
    say(f"{verb}: {len(cells)} cells ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}); nothing was run")
    return counts
