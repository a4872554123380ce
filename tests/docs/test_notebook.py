"""The notebook of the pages shows what it computes."""

import platform
import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]


def shown(notebook):
    """Numbers of the cells' results, in their order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    words = " ".join(output.data["text/plain"] for output in outputs if output.output_type == "execute_result")
    return [float(number) for number in re.findall(r"-?\d+\.\d+|\b\d+\b", words)]


@pytest.mark.long
def test_the_notebook_runs_and_shows_its_own_numbers():
    script = runpy.run_path(str(ROOT / "scripts" / "execute_notebook.py"))
    kept = nbformat.read(script["NOTEBOOK"], as_version=4)
    found = shown(script["execute"]())
    assert len(found) == len(shown(kept)) > 20
    if kept.metadata.language_info.version == platform.python_version():  # another Python has another text
        assert found == pytest.approx(shown(kept), abs=2e-3)
