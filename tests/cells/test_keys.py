"""What a cell's key depends on, and what not; the fingerprint of code over edited copies of the program."""

import dataclasses
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from qrun.cells import keys as keys_module
from qrun.cells.cell import Cell
from qrun.cells.keys import Keys, Sources, code_fingerprint, read_module
from qrun.config.schema import DataConfig, Dtype, LauncherConfig, ModelConfig, SavedAdapterConfig
from qrun.quantum.calibration import calibration
from qrun.quantum.noise import Noise
from qrun.recipes.tasks import Measure, Train
from qrun.studies import configure, noise
from qrun.studies.grid import measurement

PROGRAM = Path(keys_module.__file__).parents[1]
NANO = PROGRAM / "language" / "nano"


@pytest.fixture(scope="module")
def composed():
    return configure("noise", ["study.dims=[4]", "study.seeds=[0]", "study.sites=[one]"])


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A folder with one file per split; the text of data=text."""
    folder = tmp_path_factory.mktemp("story")
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text(f"First of {split}.\n\nSecond of {split}.")
    return folder


@pytest.fixture
def model_copy(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(NANO, folder)
    return folder


@pytest.fixture
def config(composed, story):
    model = ModelConfig("nano", path=str(NANO))
    return replace(composed, model=model, data=DataConfig("story", "text", path=str(story)))


def grid_keys(config):
    """Keys of the training, of its exact measurement and of the one on the preset's noise; read from files anew."""
    keys, found = Keys(Sources()), {}
    for cell in noise.cells(config, print):
        found[cell.task.kind, cell.axes.get("axis")] = keys.of(cell)
    return {name: found[point] for name, point in
            {"train": ("train", None), "base": ("measure", None), "exact": ("measure", "exact"),
             "noisy": ("measure", "preset"), "quiet": ("measure", "quiet")}.items()}  # fmt: skip


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


EVERYTHING = {"train", "base", "exact", "noisy", "quiet"}


def at(config, path, value):
    """The config with one value, `training.lr`, replaced."""
    head, _, rest = path.partition(".")
    return replace(config, **{head: at(getattr(config, head), rest, value) if rest else value})


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("training.lr", 0.013, {"train", "exact", "noisy", "quiet"}),
        ("study.seeds", [1], {"train", "exact", "noisy", "quiet"}),
        ("study.dims", [8], {"train", "exact", "noisy", "quiet"}),
        ("model.dtype", Dtype.bfloat16, EVERYTHING),
        ("evaluation.max_tokens", 4096, {"base", "exact", "noisy", "quiet"}),
        ("protocol.ctx", 64, EVERYTHING),  # validation is measured in windows no longer than it
        ("noise.cz", 2e-3, {"noisy"}),
        ("noise.sx", 3e-4, {"noisy"}),
        ("noise.read_1_given_0", 0.02, {"noisy"}),
        ("noise.t1_us", 200.0, set()),  # acts with a duration only, and the paper's preset has none
        ("device.shots", 100, set()),  # the study's own axis replaces it
        ("study.shots", [100], {"noisy", "quiet"}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_keys_follow_what_makes_the_number_and_those_that_need_it(config, path, value, expected):
    assert changed(grid_keys(config), grid_keys(at(config, path, value))) == expected


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("results", "elsewhere"),
        ("name", "another"),
        ("launcher", LauncherConfig(workers=7, threads=3)),
        ("model.name", "renamed"),
        ("model.device", "cpu"),
        ("data.name", "renamed"),
        ("noise.name", "renamed"),
        ("noise.date", "2020-01-01"),
        ("noise.source", "somebody else"),
        ("device.budget_s", 600.0),
        ("training.checkpoint_every", 7),
        ("study.seeds", [0, 5]),  # a longer axis leaves the first seed's cells as they are
    ],
    ids=str,
)
def test_names_places_and_launchers_are_not_in_a_key(config, path, value):
    config = at(config, "study.seeds", [0])
    own, other, keys = grid_keys(config), {}, Keys(Sources())
    for cell in noise.cells(at(config, path, value), print):
        if cell.axes.get("seed") in (None, 0):
            other[cell.task.kind, cell.axes.get("axis")] = keys.of(cell)
    assert own["train"] == other["train", None] and own["noisy"] == other["measure", "preset"]
    assert own["base"] == other["measure", None] and own["exact"] == other["measure", "exact"]


def test_an_identical_copy_of_the_model_has_the_same_keys(config, model_copy):
    assert grid_keys(at(config, "model.path", str(model_copy))) == grid_keys(config)


def test_a_chips_calibration_is_in_the_key_by_its_content(config, tmp_path):
    chip = calibration("FakeTorino")
    other = dataclasses.replace(chip, qubits={**chip.qubits, 3: dataclasses.replace(chip.qubits[3], t1_us=1.0)})
    found = []
    for name, content in (("one", chip), ("two", chip), ("three", other)):
        (tmp_path / f"{name}.json").write_text(content.to_json())
        found.append(grid_keys(replace(config, noise=Noise(calibration=str(tmp_path / f"{name}.json"), cz=1e-3))))
    assert found[0] == found[1] and changed(found[0], found[2]) == {"noisy"}


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def flip_a_weight(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8 + struct.unpack("<Q", content[:8])[0] + 1] ^= 1  # a bit of the first number
    path.write_bytes(bytes(content))


def another_rope_base(folder):
    edit_json(folder / "config.json", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})


def another_token(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["merges"] = values["model"]["merges"][:-1]
    path.write_text(json.dumps(values))


@pytest.mark.slow
@pytest.mark.parametrize("edit", [flip_a_weight, another_rope_base, another_token], ids=lambda f: f.__name__)
def test_weights_config_and_tokenizer_are_in_every_key(config, model_copy, edit):
    before = grid_keys(at(config, "model.path", str(model_copy)))
    edit(model_copy)
    assert changed(before, grid_keys(at(config, "model.path", str(model_copy)))) == EVERYTHING


def test_what_of_config_json_changes_no_number_is_in_no_key(config, model_copy):
    before = grid_keys(at(config, "model.path", str(model_copy)))
    edit_json(model_copy / "config.json", transformers_version="9.9", use_cache=False)
    assert grid_keys(at(config, "model.path", str(model_copy))) == before


@pytest.mark.parametrize(
    ("split", "expected"), [("train", {"train", "exact", "noisy", "quiet"}), ("test", EVERYTHING - {"train"})]
)
def test_each_cell_depends_on_the_splits_it_reads(config, story, tmp_path, split, expected):
    other = tmp_path / "story"
    shutil.copytree(story, other)
    moved = at(config, "data.path", str(other))
    assert grid_keys(moved) == grid_keys(config)  # the same text elsewhere
    with (other / f"{split}.txt").open("a") as file:
        file.write("\n\nOne more.")
    assert changed(grid_keys(config), grid_keys(moved)) == expected


@pytest.mark.parametrize("change", [{"name": "another"}, {"wikitext": True}, {"cut": {"test": 0.1}}], ids=str)
def test_what_a_protocol_says_of_a_text_beside_its_words_is_in_every_key(config, monkeypatch, change):
    before, load = grid_keys(config), keys_module.corpus.load
    monkeypatch.setattr(keys_module.corpus, "load", lambda data: replace(load(data), **change))
    assert changed(before, grid_keys(config)) == EVERYTHING


def test_the_exact_device_ignores_noise_sign_and_seed(config):
    here = measurement(config)
    keys = Keys(Sources())
    exact = keys.of(Cell({}, Measure(here)))
    loud = replace(here, noise=config.noise, seed=7)
    assert keys.of(Cell({"b": 4}, Measure(loud))) == exact
    assert keys.of(Cell({}, Measure(loud, "shuffled"))) != keys.of(Cell({}, Measure(here, "shuffled")))
    on = replace(here, device=config.device)
    assert len({keys.of(Cell({}, Measure(replace(on, seed=s, noise=n)))) for s in (0, 1) for n in
                (here.noise, config.noise)}) == 4  # fmt: skip


def test_the_name_of_a_need_matters(config):
    base = Cell({}, Measure(measurement(config)))
    keys = Keys(Sources())
    found = {keys.of(Cell({}, Measure(measurement(config)), needs)) for needs in
             ({}, {"base": base}, {"exact": base}, {"base": base, "exact": base})}  # fmt: skip
    assert len(found) == 4


# --- the fingerprint of code


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A copy of the program whose code is fingerprinted instead of ours. Returns edit(file, old, new)."""
    copy = tmp_path / "qrun"
    shutil.copytree(PROGRAM, copy, ignore=shutil.ignore_patterns("__pycache__", "nano", "templates"))
    monkeypatch.setattr(keys_module, "ROOT", copy)

    def forget():
        code_fingerprint.cache_clear()
        read_module.cache_clear()

    def edit(file, old, new):
        path = copy / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r} any more"
        path.write_text(text.replace(old, new, 1) if old else new + text)
        forget()

    forget()
    yield edit
    forget()


@pytest.fixture(scope="module", autouse=True)
def adapter_of_circuits(tmp_path_factory):
    """What names the method of a saved adapter."""
    global SAVED
    SAVED = tmp_path_factory.mktemp("saved")
    (SAVED / "qrun.json").write_text(json.dumps({"adapter": {"method": "circuit"}}))


def fingerprints(config):
    """Of the code behind training with two methods and measuring, exact, noisy and a saved adapter of circuits."""
    here = measurement(config)
    adapter = dataclasses.replace(config.adapter, method="lora")
    from qrun.config.verbs import TrainConfig

    train = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    tasks = {
        "train": Train(TrainConfig(**train)), "lora": Train(TrainConfig(**{**train, "adapter": adapter})),
        "exact": Measure(here), "noisy": Measure(replace(here, device=config.device, noise=config.noise)),
        "saved": Measure(replace(here, adapter=SavedAdapterConfig(str(SAVED)))),
    }  # fmt: skip
    return {name: code_fingerprint(task.modules) for name, task in tasks.items()}


DOC = '"""The noise of a block circuit'


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("quantum/noise.py", "class Depolarizing:", "# a comment\n\n\nclass Depolarizing:"),
        ("quantum/noise.py", DOC, '"""Noise, told otherwise'),
        ("quantum/noise.py", '"""Its effect on Paulis', '"""Another docstring'),
        ("training/loop.py", "\n\n", "\n\n\n# more air\n\n\n"),
        ("report/page.py", "def fill(", "def fills("),
        ("cli/main.py", "import", "import math\nimport"),
        ("errors.py", "class ", "OTHER = 1\n\n\nclass "),
        ("studies/noise.py", "ENDS / 2", "ENDS / 3"),
        ("cells/schedule.py", "def plan(", "def planned("),
        ("compression/factors.py", "import", "import math\nimport"),
    ],
)
def test_comments_docstrings_and_silent_rooms_leave_the_code_as_it_is(composed, program, file, old, new):
    before = fingerprints(composed)
    program(file, old, new)
    assert fingerprints(composed) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("quantum/noise.py", "4 * noise.cz / 3", "20 * noise.cz", {"noisy"}),
        ("quantum/devices/noisy.py", "import", "import math\nimport", {"noisy"}),
        ("training/loop.py", "import", "import math\nimport", {"train", "lora"}),
        ("recipes/fitting.py", "import", "import math\nimport", {"train", "lora"}),
        ("adapters/methods/lora.py", "lr = 0.02", "lr = 0.03", {"lora"}),
        ("adapters/methods/cayley.py", "control = False", "control = bool(0)", {"train"}),
        ("evaluation/perplexity.py", "import", "import math\nimport", {"train", "lora", "exact", "noisy", "saved"}),
        ("recipes/measuring.py", "import", "import math\nimport", {"exact", "noisy", "saved"}),
        ("recipes/measuring.py", "torch.zeros_like", "torch.ones_like", {"exact", "noisy", "saved"}),
        ("recipes/device.py", "shots // (2 if", "shots // (1 if", {"noisy"}),
        ("adapters/methods/circuit.py", "import", "import math\nimport", {"saved"}),
        (
            "evaluation/protocols.py",
            "words = (protocol, evaluation,",
            "words = (protocol, None,",
            {"train", "lora", "exact", "noisy", "saved"},
        ),
        ("evaluation/resampling.py", "0.975", "0.95", set()),  # studies alone compute with it
    ],
)
def test_code_counts_where_it_makes_the_number_and_nowhere_else(composed, program, file, old, new, expected):
    before = fingerprints(composed)
    program(file, old, new)
    assert changed(before, fingerprints(composed)) == expected


def test_a_copy_of_the_program_has_our_fingerprints(composed, program):
    copied = fingerprints(composed)
    keys_module.ROOT = PROGRAM  # monkeypatch puts it back
    code_fingerprint.cache_clear()
    read_module.cache_clear()
    assert fingerprints(composed) == copied


def test_imports_for_type_checkers_alone_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(keys_module, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qrun.b import B\n\n"
        "def f():\n    from qrun.c import d\n"
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "__init__.py").write_text("")
    (tmp_path / "c" / "d.py").write_text("")
    read_module.cache_clear()
    assert read_module("a")[1] == ["c", "c.d"]
    read_module.cache_clear()
