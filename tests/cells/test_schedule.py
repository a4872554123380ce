"""The order in which cells run, what is never run again, and what becomes of those that need a failed one."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qrun.cells.cell import Cell, with_needs
from qrun.cells.keys import Keys, Sources
from qrun.cells.pool import Outcome
from qrun.cells.schedule import plan, run_missing
from qrun.errors import RunFailed
from qrun.tracking.store import Store


@dataclass(frozen=True)
class Fake:
    """A task that is nothing but its word; `file` is what it leaves."""

    word: str
    kind: str = "train"
    file: Path | None = None
    modules: tuple = ()

    def identity(self, sources, needs):
        return {"word": self.word}

    def name(self, axes, key):
        return f"{self.word}-{key[:8]}"

    def leaves(self, name):
        return self.file

    def work(self):
        return 1.0


@dataclass
class Pool:
    """Ends cells in the order they came, or those of `slow` last; fails those whose word is in `failing`."""

    capacity: int = 1
    failing: tuple = ()
    slow: tuple = ()
    log: list = field(default_factory=list)  # ("start" or "end", word)
    places: dict = field(default_factory=dict)
    running: list = field(default_factory=list)

    def submit(self, key, task, place):
        assert len(self.running) < self.capacity
        self.running.append((key, task.word))
        self.places[task.word] = place
        self.log.append(("start", task.word))

    def next(self):
        key, word = sorted(self.running, key=lambda item: item[1] in self.slow)[0]
        self.running.remove((key, word))
        self.log.append(("end", word))
        if word in self.failing:
            return Outcome(key, "", "its loss is not finite", 1.0)
        return Outcome(key, f"run of {word}", None, 2.0)

    @property
    def started(self):
        return [word for what, word in self.log if what == "start"]


def grid(count=3):
    """base; then, as studies yield them, a training and its measurement by turns."""
    base = Cell({"method": "none"}, Fake("base", "measure"))
    cells = [base]
    for i in range(count):
        trained = Cell({"seed": i}, Fake(f"train{i}"))
        cells += [trained, Cell({"seed": i}, Fake(f"measure{i}", "measure"), {"adapter": trained, "base": base})]
    return cells


def run(cells, pool, finished=()):
    """Plan and run; `finished` are words of cells that the store has."""
    keys = Keys(Sources())
    known = {keys.of(cell): f"old run of {cell.task.word}" for cell in with_needs(cells) if cell.task.word in finished}
    todo = plan(cells, keys, known)
    return run_missing(todo, keys, dict(known), pool, Store("results"), "parent")


@pytest.mark.parametrize("capacity", [1, 2, 3, 10])
def test_needs_run_first_and_their_runs_are_handed_on(capacity):
    pool = Pool(capacity)
    done, seconds = run(list(reversed(grid())), pool)
    assert (done, seconds) == (7, 14.0) and sorted(pool.started) == sorted(c.task.word for c in grid())
    for i in range(3):
        start = pool.log.index(("start", f"measure{i}"))
        assert max(pool.log.index(("end", f"train{i}")), pool.log.index(("end", "base"))) < start
        place = pool.places[f"measure{i}"]
        assert place.needs == {"adapter": f"run of train{i}", "base": "run of base"}
        assert (
            place.axes == {"seed": i}
            and place.tags["mlflow.parentRunId"] == "parent"
            and place.uri == Store(place.results).uri
        )
        assert place.tags["kind"] == "measure" and place.name == f"measure{i}-{place.key[:8]}"


def test_a_ready_measurement_runs_before_later_trainings_are_through():
    pool = Pool(2)
    run(grid(4), pool)
    assert pool.started.index("measure0") < pool.started.index("train3")
    assert pool.log.index(("start", "measure0")) < pool.log.index(("end", "train2"))


def test_a_free_place_is_not_kept_waiting_by_a_slow_training():
    pool = Pool(2, slow=("train0",))
    run(grid(3), pool)
    assert pool.log[-2:] == [("start", "measure0"), ("end", "measure0")]
    assert pool.log.index(("end", "measure2")) < pool.log.index(("end", "train0"))


def test_finished_cells_never_run_again():
    pool = Pool(2)
    done, _ = run(grid(), pool, finished=("base", "train0", "measure0", "train1"))
    assert done == 3 and sorted(pool.started) == ["measure1", "measure2", "train2"]
    assert pool.places["measure1"].needs == {"adapter": "old run of train1", "base": "old run of base"}
    assert run(grid(), again := Pool(), finished=[c.task.word for c in grid()])[0] == 0 and again.log == []


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_what_needs_a_failed_cell_is_named_and_all_others_complete(capacity):
    cells = grid()
    device = Cell({"seed": 1, "axis": "gates"}, Fake("device1", "measure"), {"exact": cells[4], "base": cells[0]})
    pool = Pool(capacity, failing=("train1",))
    with pytest.raises(RunFailed) as failure:
        run([*cells, device], pool)
    assert sorted(pool.started) == ["base", "measure0", "measure2", "train0", "train1", "train2"]
    said = str(failure.value)
    assert said.startswith("3 of 8 cells failed: train seed=1 (its loss is not finite)")
    assert "measure seed=1 (not run: what it needs failed)" in said
    assert "measure seed=1 axis=gates (not run: what it needs failed)" in said and "seed=0" not in said


def test_every_failure_is_listed():
    pool = Pool(2, failing=("train0", "measure2"))
    with pytest.raises(RunFailed, match="3 of 7 cells failed") as failure:
        run(grid(), pool)
    assert "train seed=0 (its" in str(failure.value) and "measure seed=2 (its" in str(failure.value)
    assert ("end", "measure1") in pool.log


def test_where_the_first_need_of_all_fails_nothing_hangs():
    pool = Pool(1, failing=("base",))
    with pytest.raises(RunFailed, match="4 of 7 cells failed"):
        run(grid(), pool)
    assert sorted(pool.started) == ["base", "train0", "train1", "train2"]


def test_cells_with_equal_keys_run_once():
    first, second = Cell({"rate": 1e-3}, Fake("same")), Cell({"axis": "preset"}, Fake("same"))
    pool = Pool(4)
    after = [Cell({"of": i}, Fake(f"after{i}"), {"adapter": need}) for i, need in enumerate((first, second))]
    done, _ = run([first, second, *after], pool)
    assert done == 3 and sorted(pool.started) == ["after0", "after1", "same"]
    assert pool.places["after1"].needs == {"adapter": "run of same"}


@pytest.mark.parametrize(
    ("there", "finished", "expected"),
    [
        (False, ("train",), ["train", "measure"]),
        (False, ("train", "measure"), []),
        (True, ("train",), ["measure"]),
    ],
    ids=["gone and wanted", "gone and not wanted", "there"],
)
def test_a_finished_need_whose_file_is_gone_runs_again_only_for_an_unfinished_cell(tmp_path, there, finished, expected):
    file = tmp_path / "adapter.safetensors"
    if there:
        file.write_text("")
    trained = Cell({"seed": 0}, Fake("train", file=file))
    pool = Pool(2)
    run([trained, Cell({"seed": 0}, Fake("measure", "measure"), {"adapter": trained})], pool, finished)
    assert pool.started == expected
    if expected == ["train", "measure"]:
        assert pool.places["measure"].needs == {"adapter": "run of train"}  # not the old one


def test_a_chain_of_lost_files_is_made_again_from_its_beginning(tmp_path):
    made = Cell({"ratio": 0.5}, Fake("compress", "compress", tmp_path / "config.json"))
    trained = Cell({"seed": 0}, Fake("train", file=tmp_path / "adapter"), {"model": made})
    pool = Pool(3)
    last = Cell({"seed": 0}, Fake("measure", "measure"), {"adapter": trained})
    run([made, trained, last], pool, finished=("compress", "train"))
    assert pool.started == ["compress", "train", "measure"]
