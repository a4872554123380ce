"""What a worker refuses to compute."""

from dataclasses import dataclass

import pytest

from qrun.cells.cell import Place
from qrun.cells.keys import code_fingerprint
from qrun.cells.pool import attempt
from qrun.cells.workspace import Workspace


@dataclass(frozen=True)
class Told:
    """A task that tells where it ran."""

    modules: tuple = ("training.loop",)

    def run(self, workspace, place):
        return f"run {place.name}"


@pytest.mark.parametrize("changed", [False, True])
def test_a_worker_whose_program_is_not_the_keys_computes_nothing(tmp_path, changed):
    code = "0" * 12 if changed else code_fingerprint(Told.modules)
    place = Place(str(tmp_path), "", "here", "key", {"code": code}, {}, {})
    found = attempt("key", Told(), place, Workspace())
    assert (found.run_id, bool(found.error)) == (("", True) if changed else ("run here", False))
    assert not changed or "the program was changed while the study ran" in found.error
