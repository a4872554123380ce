"""The scripts beside the package: each explains itself, the small ones run."""

import json
import runpy
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "scripts"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "forked")  # which two of them share


@pytest.fixture
def script(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        with suppress(SystemExit):
            runpy.run_path(str(next(path for path in SCRIPTS if path.stem == name)), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS])
def test_a_script_explains_itself(script, name):
    assert len(script(name, "--help")) > 100


@pytest.mark.slow
def test_the_bench_has_a_row_for_each_candidate_and_races_what_agrees(script, tmp_path):
    out = script("bench", "--quick", "--rounds", 1, "--only", "layer", "--out", tmp_path)
    found = json.loads((tmp_path / "bench.json").read_text())
    own = [row["name"] for row in found["rows"] if row["group"] == "layer, b = 4"]
    assert own == ["qrun", "PEFT OFT, exact", "PEFT OFT, Neumann", "PEFT LoRA, r = 2", "frozen layer"]
    for row in found["rows"]:
        assert 0 < row["low"] <= row["rate"] == row["high"] and row["name"] in out
        first = next(other for other in found["rows"] if other["group"] == row["group"])
        assert row["times"] == pytest.approx(first["rate"] / row["rate"])
    page = (tmp_path / "README.md").read_text()
    assert page.count("| layer, b = 8 | ") == 5 and f"torch {version('torch')}" in page and "--quick" in page


@pytest.mark.slow
def test_a_few_faults_are_survived(tmp_path):
    """Of each sort: kills, a full disk, a broken store, a torn file. `make faults` has 200."""
    file = next(path for path in SCRIPTS if path.stem == "faults")
    words = ["--faults", "3", "--seed", "3", "--only", "kill -9", "full", "broken", "torn"]
    done = subprocess.run(
        [sys.executable, str(file), *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0 and "3 faults of seed 3: 0 lost, 0 skipped" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"x = 'hf_{'Ab3' * 11}'", "a token of the hub"), (f"ghp_{'a1' * 18}", "a token of GitHub"),
        (f"id: AKIA{'Z' * 16}", "a key of AWS"), (f"-----BEGIN RSA {'PRIVATE'} KEY-----", "a private key"),
        ("uri=postgresql://me:" + "p4ssw0rd-of-mine@host/db", "a password in an address"),
        (f"QISKIT_IBM_TOKEN={'q7' * 20}", "a secret that is set"),
    ],
)  # fmt: skip
def test_a_planted_secret_is_found_and_not_repeated(script, tmp_path, line, kind):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "notes.txt").write_text(f"nothing\n{line}\n")
    assert script("leaks", tmp_path) == "0 secrets in tracked files\n"
    subprocess.run(["git", "add", "notes.txt"], cwd=tmp_path, check=True)
    assert script("leaks", tmp_path).splitlines() == [f"notes.txt:2: {kind}", "1 secrets in tracked files"]


@pytest.mark.parametrize(
    ("code", "said", "found"),
    [
        (0, "", "ran"), (2, "qrun: seed=-1: give 0 or more", "refused"), (2, "qrun: wrong", "unnamed"),
        (2, "qrun: seed\nmore", "lines"), (2, "qrun: seed" + "x" * 300, "long"), (-999, "", "hung"),
        (1, "Traceback\nseed", "crashed"), (-11, "qrun: seed", "crashed"),
    ],
)  # fmt: skip
def test_the_fuzz_knows_what_a_command_came_to(code, said, found, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    fuzz = runpy.run_path(str(SCRIPTS[0].with_name("fuzz.py")))
    assert fuzz["verdict"](fuzz["Input"]("words", [], ("seed",)), fuzz["Ended"](code, said)) == found


@pytest.mark.slow
def test_wrong_words_broken_files_and_odd_names_run_or_are_refused_in_one_line(tmp_path):
    """A process of its own, because it forks."""
    command = [sys.executable, str(SCRIPTS[0].with_name("fuzz.py")), "--inputs", "30", "--seed", "11"]
    done = subprocess.run([*command, "--keep", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "30 inputs of seed 11: 0 neither" in done.stdout, done.stdout + done.stderr
