"""Experiment files: composed by the command in their headers, stated at their models' true shapes without weights."""

import re
import shlex
from collections import Counter

import pytest

from qrun.cells.cell import with_needs
from qrun.config.tree import TREE, options
from qrun.studies import STUDIES, configure, module

FILES = sorted(options()["experiment"])


def header(name):
    return (TREE / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]


def command(name):
    """The words of the header's command, without what a reader has to fill in."""
    line = re.search(r"^# command\s+(qrun .*?)(?:\s{2,}.*)?$", header(name), re.MULTILINE).group(1)
    return [
        word
        for word in shlex.split(line)[1:]
        if "<" not in word and word not in ("model=local", "model@original=smollm2_instruct")
    ]


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_command_machine_and_expectation_and_the_command_composes(qrun, name):
    assert all(f"# {key}" in header(name) for key in ("command", "machine", "expected"))
    code, out, err = qrun(*command(name), "--cfg", "job")
    assert code == 0, err
    assert out


GRIDS = {  # cells by kind, and trained parameters of some points
    "smollm2_dim": (
        {"train": 120, "measure": 242},
        {("all", 4, "cayley"): 224_640, ("all", 64, "cayley"): 4_717_440, ("one", 4, "cayley"): 864},
    ),
    "smollm2_controls": (
        {"train": 70, "measure": 172},
        {("all", 4, "oft"): 224_640, ("one", 4, "dense"): 331_776, ("one", 4, "diagonal"): 576},
    ),
    "smollm2_noise": ({"train": 40, "measure": 1151}, {("all", 8, "cayley"): 524_160}),
    "smollm2_circuits": (
        {"train": 35, "measure": 132},
        {("all", 8, "cayley"): 524_160, ("all", 64, "cayley"): 4_717_440},
    ),
    "smollm2_recover": ({"compress": 2}, {(None, 4, "cayley"): 224_640}),
    "llama_noise": ({"train": 10, "measure": 331}, {("one", 4, "cayley"): 6_144, ("one", 8, "cayley"): 14_336}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_studies_are_stated_at_their_true_shapes_without_weights(name):
    words = command(name)
    study = next(word for word in words if word in STUDIES)
    grid = list(module(study).cells(configure(study, words[words.index(study) + 1 :]), lambda _: None))
    kinds, counts = GRIDS[name]
    assert Counter(cell.task.kind for cell in grid).items() >= kinds.items()
    trained = [cell for cell in grid if cell.task.kind == "train"]
    sizes = {tuple(cell.axes.get(k) for k in ("sites", "b", "method")): cell.task.parameters() for cell in trained}
    assert sizes.items() >= counts.items()
    assert all(need in with_needs(grid) for cell in grid for need in cell.needs.values())


def test_a_dry_run_lists_the_whole_grid_and_writes_nothing(qrun, tmp_path):
    code, out, err = qrun(*command("smollm2_dim"), "--dry-run", f"results={tmp_path / 'r'}")
    assert code == 0, err
    lines = out.splitlines()
    assert "train sites=all b=4 method=cayley seed=0: 224,640 parameters" in lines and len(lines) == 388
    assert not (tmp_path / "r").exists()


def test_the_papers_sequence_is_planned(qrun):
    code, out, err = qrun(*command("llama_qpu"))
    assert code == 0, err
    assert "1,328" in out
