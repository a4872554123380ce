"""One point of a study: named axes, a task that says what is computed, and the other cells it needs.

    trained = Cell({"sites": "all", "b": 4, "seed": 0}, Train(...))
    Cell({**trained.axes, "axis": "gates", "rate": 1e-3}, Measure(...), {"adapter": trained, "base": base})

The whole grid exists before anything runs: a cell names cells, never runs. Tasks are small picklable descriptions; the
process that computes a cell opens models and texts itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qrun.cells.keys import Sources
    from qrun.cells.workspace import Workspace

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Place:
    """Where a cell's number goes: the results folder and the URI of its store, the run's name, its tags and axes, and
    the runs of the cells it needs."""

    results: str
    uri: str
    name: str
    key: str
    tags: Mapping[str, str]
    axes: Mapping[str, Scalar]
    needs: Mapping[str, str]  # name of the need -> run id


class Task(Protocol):
    """What a cell computes."""

    @property
    def kind(self) -> str:
        """Scan, train, measure, compress, ask."""
        ...

    @property
    def modules(self) -> tuple[str, ...]:
        """Whose code, with all it imports, makes the number."""
        ...

    def identity(self, sources: "Sources", needs: Mapping[str, str]) -> Mapping[str, object]:
        """Everything of the task that can change its number; `needs` are the keys of what it needs."""
        ...

    def name(self, axes: Mapping[str, Scalar], key: str) -> str:
        """Name of the cell's run."""
        ...

    def leaves(self, name: str) -> Path | None:
        """A file without which cells that need this one cannot run."""
        ...

    def work(self) -> float:
        """Size of the task in FLOP, about: what `--dry-run` multiplies with a measured rate."""
        ...

    def parameters(self) -> int | None:
        """Trained parameters, where the shape tells them."""
        ...

    def run(self, workspace: "Workspace", place: Place) -> str:
        """Compute, leave a FINISHED run, return its id."""
        ...


@dataclass(frozen=True, eq=False)
class Cell:
    """One point. Two cells of a grid may have the same key, such as a rate and the preset that has it."""

    axes: Mapping[str, Scalar]
    task: Task
    needs: Mapping[str, "Cell"] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`measure sites=all b=4 seed=0`."""
        shown = [f"{k}={v}" for k, v in self.axes.items() if v is not None]
        return " ".join([self.task.kind, *shown])


def with_needs(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and everything they need, each once, what is needed before what needs it."""
    ordered: dict[int, Cell] = {}

    def add(cell: Cell) -> None:
        if id(cell) not in ordered:
            for need in cell.needs.values():
                add(need)
            ordered[id(cell)] = cell

    for cell in cells:
        add(cell)
    return list(ordered.values())


def whole(cells: Iterable[Cell]) -> list[Cell]:
    """A study's grid with what it needs and does not yield itself, such as scans of rates, each once."""
    own = list(cells)
    ordered, mine = with_needs(own), {id(cell) for cell in own}
    hidden = [cell for cell in ordered if id(cell) not in mine]
    kinds = {cell.task.kind for cell in hidden}
    told = {_described(cell) for cell in own if cell.task.kind in kinds}
    for cell in hidden:
        if (words := _described(cell)) not in told:
            told.add(words)
            mine.add(id(cell))
    return [cell for cell in ordered if id(cell) in mine]


def _described(cell: Cell) -> str:
    """The same for two cells that compute the same, before texts and weights are read for their keys."""
    return repr((cell.task, [(name, _described(need)) for name, need in cell.needs.items()]))
