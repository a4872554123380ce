"""Execute docs/notebook.ipynb in an empty folder and write it again, with what it shows. Its numbers are those of the
documentation inside this Python.

python scripts/execute_notebook.py
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"


def execute(path: Path = NOTEBOOK) -> NotebookNode:
    """The notebook as this machine executes it; the file is left alone."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # tqdm would tell where packages lie
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute(env=quiet)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()  # times of execution
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if " s left" not in str(output)]  # progress
    return notebook


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    nbformat.write(execute(), NOTEBOOK)
