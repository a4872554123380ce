"""The whole grids of the studies, before anything runs: which cells, with which axes, rates and needs."""

import dataclasses
import json
import math
import re
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise

import pytest

from qrun.cells.cell import whole, with_needs
from qrun.config.schema import Side
from qrun.errors import InputError
from qrun.language.models import local_folder
from qrun.recipes.checks import check_unseen
from qrun.studies import configure, module
from qrun.studies.grid import home_is_known
from qrun.studies.ladder import RECORD as LADDER_RECORD

SWEEPS = ("dim", "controls", "noise", "wall", "circuits", "sites", "frontier")


def grid(study, *words):
    """Cells and what was said."""
    said: list[str] = []
    return list(module(study).cells(configure(study, list(words)), said.append)), said


def kinds(cells):
    return dict(Counter(cell.task.kind for cell in cells))


def trained(cells, **axes):
    return [c for c in cells if c.task.kind == "train" and all(c.axes.get(k) == v for k, v in axes.items())]


def values(cells, axis):
    return list(dict.fromkeys(cell.axes.get(axis) for cell in cells))


@pytest.fixture(scope="module")
def default():
    return {study: grid(study) for study in (*SWEEPS, "recover", "questions")}


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        # every adapter on the study's text, at home and by the second protocol; rank 1 at one site serves two b
        ("dim", {"scan": 2 * 6 * 2 - 1, "train": 2 * 6 * 2 * 5, "measure": 3 * (1 + 2 * 6 * 2 * 5)}),
        ("controls", {"scan": 2 * 7, "train": 2 * 7 * 5, "measure": 3 * (1 + 2 * 7 * 5) + 2 * 5 * 3}),
        # per site set and seed: b=2 has 5 points and 10 readout rates, the others 6 points and 26 rates
        ("noise", {"scan": 2 * 4, "train": 2 * 4 * 5, "measure": 1 + 2 * 4 * 5 + 2 * 5 * (15 + 3 * 32)}),
        # per b and seed: LoRA and the adapter exact; 3 ways at 2 noises and 4 rates, and 4 beside them at a noise;
        # of one seed 2 nulls of every way
        ("wall", {"scan": 4, "train": 2 * 5 * 2, "measure": 1 + 2 * 5 * (2 + 3 * (2 + 4) + 4) + 2 * 2 * (3 + 4)}),
        # per seed: Cayley blocks of three b, circuits of 3 and 1 k, and 4 cuts; at b = 8 all on a device too
        ("circuits", {"scan": 7, "train": 5 * 7, "measure": 3 * (1 + 5 * 7) + 5 * 4 + 5 * (1 + 3 + 4)}),
        # per b, count and seed: exact, at home, by the second protocol, and two ways on the device
        ("sites", {"scan": 2 * 6, "train": 2 * 6 * 5, "measure": 3 + 2 * 6 * 5 * (3 + 2)}),
        # per site set and seed: three b of the adapter, of BOFT and of LoRA, one diagonal, one dense
        ("frontier", {"scan": 3 * 11, "train": 3 * 3 * 11, "measure": 3 * (1 + 3 * 3 * 11)}),
        # shifted: 2 b of the original, 7 arms at each ratio; home: 1 and 3
        ("recover", {"compress": 4, "scan": 23, "train": 5 * (2 + 2 * 7 + 1 + 2 * 3), "measure": 6 + 5 * 23}),
        ("questions", {"ask": 1}),
    ],
)
def test_default_grids_have_exactly_these_cells(default, study, expected):
    cells, said = default[study]
    assert kinds(whole(cells)) == expected and len(set(map(id, cells))) == len(cells)
    assert set(kinds(c for c in with_needs(cells) if id(c) not in set(map(id, cells)))) <= {"scan"}
    assert bool(said) == (study == "noise")


@pytest.mark.parametrize("study", [*SWEEPS, "recover"])
def test_no_two_cells_of_a_kind_stand_at_the_same_point(default, study):
    cells, _ = default[study]
    points = [(cell.task.kind, *sorted(cell.axes.items(), key=lambda item: item[0])) for cell in cells]
    assert len(set(points)) == len(points)


def test_every_measurement_of_an_adapter_needs_its_own_training(default):
    for study in ("dim", "controls", "noise", "circuits", "sites", "frontier", "recover"):
        for cell in default[study][0]:
            if cell.task.kind != "measure" or cell.axes["method"] == "none":
                assert "adapter" not in cell.needs
                continue
            need = cell.needs["adapter"]
            assert need.task.kind == "train" and need.axes.items() <= cell.axes.items()
            assert need.task.config.seed == cell.axes["seed"] and need.task.config.adapter.method == cell.axes["method"]
            assert cell.needs["base"].axes["method"] == "none"


@pytest.mark.parametrize(("study", "word", "said"), [
    ("wall", "study.ways=[nope/sqrt/input]", "study.ways=nope/sqrt/input: device.circuit=nope"),
    ("wall", "study.beside=[line/posterior/two_settings]", "study.beside=line/posterior/two_settings: signs.kind="),
    ("sites", "study.ways=[merged/sqrt/reference]", "study.ways=merged/sqrt/reference: signs.kind=reference"),
    ("wall", "study.dims=[128]", "study.dims=128: does not divide the input width 192"),
    ("circuits", "study.wide=[4096]", "study.wide=4096: does not divide"),
    ("circuits", "study.others=[0]", "study.others=0: give"),
    ("circuits", "study.noises=[nope]", "study.noises=nope: noise=nope: no such option"),
    ("wall", "study.noises=[nope]", "study.noises=nope: noise=nope: no such option"),
    ("wall", "study.rates=[0.9]", "study.rates=0.9: noise=paper axis=proportional"),
    ("recover", "study.ratios=[1e-300]", "study.ratios=1e-300: compression.ratio=1e-300"),
])  # fmt: skip
def test_an_axis_is_named_by_what_one_of_its_values_leads_to(study, word, said):
    with pytest.raises(InputError, match=re.escape(said)) as stop:
        grid(study, word)
    assert len(str(stop.value)) <= 300


# --- beside: home text, second protocol


def test_beside_every_adapter_stand_its_home_text_and_the_second_protocol(default):
    for study in ("dim", "controls", "circuits", "sites", "frontier"):
        cells, _ = default[study]
        for name, text, protocol in (
            ("home", "libdocs_sample", "fixed_window"),
            ("second", "pydoc_clean", "lm_eval_wikitext"),
        ):
            own = [cell for cell in cells if cell.axes.get("beside") == name]
            assert [cell.axes["method"] for cell in own].count("none") == 1 and len(own) == 1 + kinds(cells)["train"]
            for cell in own:
                task = cell.task.config
                assert (task.data.name, task.protocol.kind.value, task.protocol.ctx) == (text, protocol, 256)
                assert task.evaluation.max_tokens == 28672 * (4 if name == "second" else 1)  # whole documents
                assert cell.axes["method"] == "none" or cell.needs["base"].axes == {"beside": name, "method": "none"}
        assert not [cell for cell in grid(study, "data@home=null", "protocol@second=null")[0] if "beside" in cell.axes]


def test_home_text_is_left_out_for_a_model_that_was_not_trained_on_it(tmp_path):
    cells, said = grid("dim", "model=smollm2", "study.dims=[4]")
    assert {cell.axes.get("beside") for cell in cells} == {None, "second"}
    assert said == ["left out, home text libdocs_sample: not known to be model=smollm2's own"]
    config = configure("dim", ["data@home=wikitext2"])
    assert home_is_known(config.home, configure("dim", ["model=smollm2"]).model)  # the user's word
    other = dataclasses.replace(config.model, embedded=False, path=str(tmp_path))
    assert not home_is_known(configure("dim", []).home, other)
    (tmp_path / "training_record.json").write_text("{}")
    assert home_is_known(configure("dim", []).home, other)


@pytest.mark.parametrize("study", ["noise", "wall"])
@pytest.mark.parametrize(
    ("key", "word", "values"),
    [("home", "data@home=libdocs_sample", "{name: own, source: pydoc}"),
     ("second", "protocol@second=lm_eval_wikitext", "{kind: fixed_window}")],
)  # fmt: skip
def test_studies_of_another_studys_adapters_refuse_what_stands_beside_its_gains(
    tmp_path, monkeypatch, study, key, word, values
):
    with pytest.raises(InputError, match=f"this command has no {word.partition('=')[0]}"):
        configure(study, [word])
    monkeypatch.setenv("QRUN_CONFIG_DIR", str(tmp_path))
    (tmp_path / "experiment").mkdir()
    header = f"# @package _global_\n# command   qrun sweep {study} experiment=own\n"
    (tmp_path / "experiment" / "own.yaml").write_text(f"{header}{key}: {values}\n")
    with pytest.raises(InputError, match=f"{key}=.*has one text and protocol"):
        configure(study, ["experiment=own"])
    assert getattr(configure("dim", ["experiment=own"]), key) is not None


@pytest.mark.parametrize("study", [*SWEEPS, "recover"])
def test_every_method_has_as_many_trials_of_its_rate_with_a_seed_of_their_own(default, study):
    for cell in trained(default[study][0]):
        scan, own = cell.needs["rate"].task, cell.task.config
        assert scan.kind == "scan" and scan.trials == 5 and scan.config.seed == 100
        if not own.adapter.order:  # of those that add sites in another order the first one's rate is taken
            assert scan.config.adapter == own.adapter
        assert scan.config.training == dataclasses.replace(own.training, steps=60) and own.training.steps == 300
        assert (scan.config.data, scan.config.teacher) == (own.data, own.teacher)
        assert cell.needs["rate"].needs.get("model") is cell.needs.get("model")


def test_one_trial_means_the_stated_rates_and_a_shorter_cap_is_the_same_for_all():
    assert "scan" not in kinds(whole(grid("controls", "study.trials=1")[0]))
    scans = [c.task.config.training.steps for c in whole(grid("controls", "study.trial_steps=90")[0])
             if c.task.kind == "scan"]  # fmt: skip
    assert set(scans) == {90} and len(scans) == 14
    assert {c.task.config.training.steps for c in trained(grid("controls", "study.trial_steps=90")[0])} == {300}


# --- dim


def test_dim_gives_lora_the_seeds_of_the_adapter(default):
    cells, _ = default["dim"]
    assert values(trained(cells, method="cayley"), "b") == [2, 4, 8, 16, 32, 64]
    assert values(trained(cells, method="cayley"), "seed") == [0, 1, 2, 3, 4]
    assert values(trained(cells, method="lora"), "seed") == [0, 1, 2, 3, 4]
    assert values(trained(cells), "sites") == ["all", "one"] and len(trained(cells, sites="one", b=64)) == 10
    assert not trained(grid("dim", "study.controls=[]")[0], method="lora")


def test_the_one_site_is_v_proj_of_the_last_layer(default):
    for cell in trained(default["dim"][0], sites="one"):
        assert cell.task.config.adapter.projections == ["v_proj"] and cell.task.config.adapter.layers == ["last"]
    for cell in trained(default["dim"][0], sites="all", method="cayley"):
        assert len(cell.task.config.adapter.projections) == 7 and cell.task.config.adapter.layers == ["all"]
    own = grid("dim", "study.sites=[adapter]", "adapter.projections=[q_proj]", "adapter.layers=first")[0]
    assert {tuple(c.task.config.adapter.projections) for c in trained(own)} == {("q_proj",)}


@pytest.mark.parametrize(("b", "lr"), [(2, 0.008), (4, 0.004), (8, 0.002), (16, 0.001), (64, 0.00025)])
def test_the_learning_rate_falls_as_one_over_b(default, b, lr):
    for cell in trained(default["dim"][0], method="cayley", b=b):
        assert cell.task.config.training.lr == pytest.approx(lr, rel=1e-12) and cell.task.config.training.clip == 1.0


@pytest.mark.parametrize(("exponent", "expected"), [(0, [0.004] * 3), (1, [0.008, 0.004, 0.002]),
                                                   (2, [0.016, 0.004, 0.001])])  # fmt: skip
def test_lr_exponent_says_how_fast_it_falls(exponent, expected):
    cells, _ = grid("dim", "study.dims=[2,4,8]", "study.seeds=[0]", "study.sites=[all]", "study.controls=[]",
                    f"study.lr_exponent={exponent}")  # fmt: skip
    assert [c.task.config.training.lr for c in trained(cells)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("sites", "b", "rank", "projections", "parameters"),
    # nano: (in + out) of all sites 20352, of v_proj 256; the adapter has width * (b - 1) / 2
    [("all", 16, 4, 7, 81408), ("all", 32, 8, 7, 162816), ("all", 64, 15, 7, 305280), ("one", 4, 1, 1, 256),
     ("one", 8, 3, 1, 768), ("one", 16, 6, 1, 1536), ("one", 64, 24, 1, 6144), ("one", 2, 1, 1, 256)],
)  # fmt: skip
def test_lora_has_the_rank_of_about_equal_parameters_and_a_rate_falling_with_its_root(
    default, sites, b, rank, projections, parameters
):
    cells, _ = default["dim"]
    lora, own = trained(cells, method="lora", sites=sites, b=b)[0], trained(cells, method="cayley", sites=sites, b=b)[0]
    assert own.task.parameters() == {"all": 9984, "one": 192}[sites] * (b - 1) // 2
    assert lora.task.config.adapter.rank == rank and lora.task.parameters() == parameters
    assert len(lora.task.config.adapter.projections) == projections
    assert lora.task.config.training.lr == pytest.approx(0.02 / math.sqrt(rank), rel=1e-12)


@pytest.mark.parametrize("b", [2, 4, 8])
def test_where_rank_one_everywhere_is_too_large_lora_has_fewer_sites_and_equal_parameters(default, b):
    cells, _ = default["dim"]
    lora, own = (trained(cells, method=name, sites="all", b=b)[0].task for name in ("lora", "cayley"))
    assert 1 / 1.1 <= lora.parameters() / own.parameters() <= 1.1
    assert 0 < len(lora.config.adapter.projections) < 7


def test_the_exact_grid_is_the_same_training_in_every_study(default):
    """So that their keys are the same and it is trained once: dim, controls, noise at b = 4."""
    tasks = [trained(default[study][0], method="cayley", b=4, sites="all", seed=1)[0].task for study in
             ("dim", "controls", "noise")]  # fmt: skip
    first = tasks[0].config
    for task in tasks[1:]:
        assert (task.config.adapter, task.config.training, task.config.seed, task.config.data, task.config.model) == (
            first.adapter, first.training, first.seed, first.data, first.model,
        )  # fmt: skip


def test_dimensions_that_do_not_divide_are_refused_or_left_out_and_said():
    with pytest.raises(InputError, match=r"study\.indivisible=skip"):
        grid("dim", "study.dims=[4,7]")
    cells, said = grid("dim", "study.dims=[4,7]", "study.indivisible=skip", "study.seeds=[0]", "study.sites=[all]")
    assert values(trained(cells), "b") == [4] and len(said) == 1 and said[0].startswith("left out, sites=all b=7:")
    with pytest.raises(InputError, match="none divides every site"):
        grid("dim", "study.dims=[7]", "study.indivisible=skip")


def test_the_output_side_counts_output_widths():
    cells, _ = grid("dim", "study.dims=[4]", "study.seeds=[0]", "study.sites=[one]", "adapter.side=output",
                    "study.controls=[]")  # fmt: skip
    (cell,) = trained(cells)
    assert cell.task.config.adapter.side is Side.output and cell.task.parameters() == 64 * 3 // 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("study.dims=[4,4]", "different values"),
        ("study.dims=[1]", "2 or more"),
        ("study.seeds=[]", "different values"),
        ("study.seeds=[-1]", "number from 0 to"),
        ("study.lr_exponent=3", "0 to 2"),
        ("study.seeds=[0,100]", "seed of the scans"),
        ("study.trials=0", "1 or more"),
        ("study.controls=[oft]", "qrun sweep controls"),
        ("study.controls=[cayley]", "use "),
        ("study.control_lr.nothing=1", "learning rate above 0"),
        ("study.control_lr.lora=0", "learning rate above 0"),
    ],
)
def test_axes_that_make_no_sense_are_refused(word, message):
    with pytest.raises(InputError, match=message):
        configure("dim", [word])


# --- controls


def test_controls_train_at_their_own_rates_and_clipping(default):
    cells, _ = default["controls"]
    steps = {c.axes["method"]: (c.task.config.training.lr, c.task.config.training.clip) for c in trained(cells)}
    assert list(steps) == ["cayley", "oft", "boft", "lora", "diagonal", "block", "dense"]
    assert steps["cayley"] == (0.004, 1.0) and steps["oft"] == (0.002, 2.0)
    assert steps["lora"][0] == 0.02 and steps["diagonal"][0] == 0.02 and steps["block"][0] == 0.01
    assert {clip for name, (_, clip) in steps.items() if name != "oft"} == {1.0}


def test_oft_has_half_the_rate_and_twice_the_clipping_at_every_b():
    cells, _ = grid("controls", "study.dims=[2,4,8]", "study.seeds=[0]", "study.sites=[one]", "study.controls=[oft]",
                    "training.clip=0.7", "training.lr=0.02")  # fmt: skip
    for b in (2, 4, 8):
        own, oft = (trained(cells, b=b, method=m)[0].task for m in ("cayley", "oft"))
        assert own.config.training.lr == pytest.approx(0.02 * 4 / b, rel=1e-12) and own.config.training.clip == 0.7
        assert oft.config.training.lr == own.config.training.lr / 2 and oft.config.training.clip == 1.4
        assert oft.parameters() == own.parameters()


def test_control_lr_takes_the_place_of_a_methods_own_rate_and_is_scaled_as_that():
    cells, _ = grid("controls", "study.dims=[8]", "study.seeds=[0]", "study.sites=[one]",
                    "study.controls=[oft,lora,block]", "study.control_lr.lora=0.3", "study.control_lr.oft=0.1",
                    "study.control_lr.block=0.5")  # fmt: skip
    lr = {c.axes["method"]: c.task.config.training.lr for c in trained(cells)}
    assert lr == pytest.approx({"cayley": 0.002, "oft": 0.025, "lora": 0.3 / math.sqrt(3), "block": 0.25}, rel=1e-12)


def test_nulls_stand_beside_the_adapter_alone_and_on_the_device_where_circuits_exist(default):
    cells, _ = default["controls"]
    measured = [c for c in cells if c.task.kind == "measure" and c.axes["method"] != "none"]
    assert {c.axes["method"] for c in measured if c.axes["null"] != "trained"} == {"cayley"}
    here = {c.axes["null"]: c.task for c in measured if c.axes["method"] == "cayley" and c.axes["seed"] == 1}
    assert {name: (task.values, task.config.device.kind) for name, task in here.items()} == {
        "trained": ("trained", "exact"), "shuffled K": ("shuffled", "exact"),
        "K = 0 on the device": ("zero", "noisy"), "adapter on the device": ("trained", "noisy"),
    }  # fmt: skip
    assert here["adapter on the device"].config.noise.cz == 1.78e-3 and here["shuffled K"].config.seed == 1
    assert here["trained"].config.noise.ideal
    for cell in measured:
        if cell.axes["null"] != "trained":
            assert cell.needs["exact"].axes["null"] == "trained" and cell.needs["exact"].axes["b"] == cell.axes["b"]
    odd, _ = grid("controls", "study.dims=[3]", "study.sites=[one]", "study.seeds=[0]", "study.controls=[]",
                  "adapter.projections=[v_proj]")  # fmt: skip
    assert values([c for c in odd if c.task.kind == "measure"], "null") == [None, "trained"]
    exact, _ = grid("controls", "device=exact", "noise=none", "study.seeds=[0]", "study.sites=[one]",
                    "study.controls=[]")  # fmt: skip
    assert values([c for c in exact if c.task.kind == "measure"], "null") == [None, "trained", "shuffled K"]


# --- noise


def test_two_channel_blocks_stand_on_the_readout_axis_but_not_on_that_of_gates(default):
    cells, said = default["noise"]
    axes = {b: values([c for c in cells if c.axes.get("b") == b and c.task.kind == "measure"], "axis") for b in (2, 4)}
    points = ["exact", "quiet", "preset", "uniform", "only readout", "only one_qubit"]
    assert axes[2] == [*points, "readout"] and axes[4] == [*points, "only two_qubit", "gates", "readout"]
    assert said == ["left out, b=2 on axis gates: its circuits have no two-qubit gate"]  # once, not per site set


def test_every_asked_axis_is_there_or_said_to_be_left_out():
    cells, said = grid("noise", "study.dims=[2,4]", "study.seeds=[0]", "study.sites=[one]", "study.rates=[1e-3]",
                       "study.axes=[gates,readout,one_qubit,two_qubit,proportional]")  # fmt: skip
    found = {b: {c.axes["axis"] for c in cells if c.axes.get("b") == b and c.axes.get("rate")} for b in (2, 4)}
    assert found[4] == {"gates", "readout", "one_qubit", "two_qubit", "proportional"}
    assert found[2] == {"readout", "one_qubit"}
    assert [line.partition(":")[0] for line in said] == [f"left out, b=2 on axis {a}" for a in
                                                         ("gates", "two_qubit", "proportional")]  # fmt: skip


def noises(cells, **axes):
    return {c.axes["rate"]: c.task.config.noise for c in cells if
            c.task.kind == "measure" and all(c.axes.get(k) == v for k, v in axes.items())}  # fmt: skip


def test_the_rate_of_an_axis_is_the_rate_of_its_error_and_the_others_stay_or_go(default):
    cells, _ = default["noise"]
    for rate, noise in noises(cells, axis="gates", b=4, seed=0, sites="one").items():
        assert noise.cz == rate and noise.sx == pytest.approx(2.45e-4 * rate / 1.78e-3, rel=1e-12)
        assert (noise.read_1_given_0, noise.read_0_given_1) == (0.01, 0.01)
    readout = noises(cells, axis="readout", b=2, seed=0, sites="one")
    six = [1e-3, 1.5e-3, 2.2e-3, 3.2e-3, 4.6e-3, 6.8e-3, 1e-2, 1.5e-2, 2.2e-2, 3.2e-2]
    assert list(readout) == six and all(1.4 < b / a < 1.6 for a, b in pairwise(six))
    for rate, noise in readout.items():
        assert noise.gates_ideal and (noise.read_1_given_0 + noise.read_0_given_1) / 2 == pytest.approx(rate, rel=1e-12)
    without = {axis: noises(cells, axis=axis, b=4, seed=0, sites="one")[None] for axis in
               ("quiet", "preset", "uniform", "only readout", "only one_qubit", "only two_qubit")}  # fmt: skip
    assert without["quiet"].ideal and without["preset"].cz == 1.78e-3 and without["uniform"].block == 1.0
    assert without["only readout"].gates_ideal and without["only readout"].read_1_given_0 == 0.01
    assert (without["only one_qubit"].sx, without["only one_qubit"].cz) == (2.45e-4, 0.0)
    assert (without["only two_qubit"].sx, without["only two_qubit"].cz) == (0.0, 1.78e-3)


def test_a_rate_that_cannot_be_is_left_out_and_said():
    cells, said = grid("noise", "study.dims=[4]", "study.seeds=[0]", "study.sites=[one]", "study.rates=[1e-3,0.8]",
                       "study.readout_rates=[0.4,0.6]")  # fmt: skip
    assert list(noises(cells, axis="gates")) == [1e-3] and list(noises(cells, axis="readout")) == [0.4]
    assert len(said) == 2 and "axis=gates rate=0.8" in said[0] and "axis=readout rate=0.6" in said[1]


def test_noise_measures_each_seed_with_its_own_draws_signs_and_shots():
    cells, _ = grid("noise", "study.dims=[4]", "study.seeds=[3,5]", "study.sites=[one]", "study.rates=[1e-3]",
                    "study.readout_rates=[1e-2]", "study.shots=[100,null]", "study.signs=[input,exact]")  # fmt: skip
    points = [c for c in cells if c.axes.get("axis") == "preset"]
    assert [(c.axes["seed"], c.axes["sign"], c.axes["shots"]) for c in points] == [
        (s, sign, shots) for s in (3, 5) for sign in ("input", "exact") for shots in (100, 0)
    ]  # fmt: skip
    for c in points:
        assert c.task.config.seed == c.axes["seed"] and c.task.config.signs.kind.value == c.axes["sign"]
        assert c.task.config.device.shots == (c.axes["shots"] or None)
        assert c.needs["exact"].axes == {**c.needs["adapter"].axes, "axis": "exact"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study.rates=[1e-2,1e-3]"], "rising order"),
        (["study.readout_rates=[0]"], "above 0"),
        (["study.axes=[gates,other]"], "use gates"),
        (["study.shots=[0]"], "1 or more"),
        (["study.dims=[3]"], "powers of two"),
        (["device=exact", "noise=none"], "device=noisy"),
        (["noise=none"], "its cz is 0"),
    ],
)
def test_noise_axes_that_make_no_sense_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        configure("noise", words)


def test_signs_that_some_blocks_have_no_circuits_for_are_left_out():
    cells, said = grid("noise", "study.signs=[reference]", "study.dims=[8,16]", "study.seeds=[0]", "study.sites=[one]")
    assert {c.axes["b"] for c in cells if c.axes.get("sign")} == {8}
    assert "left out, circuit=line signs=reference at b=16: a reference has circuits up to b = 8" in said


# --- wall


def test_noise_aware_training_is_for_what_runs_on_a_device():
    cells, _ = grid("wall", "training.kept=0.9", "study.dims=[4]", "study.seeds=[0]")
    kept = {c.axes["method"]: c.task.config.training.kept for c in cells if c.task.kind == "train"}
    assert kept == {"lora": 1.0, "cayley": 0.9}


def test_a_way_is_its_circuit_estimate_and_signs_at_each_noise_and_rate(default):
    device = [c for c in default["wall"][0] if c.axes.get("way") and c.axes["seed"] == 0 and c.axes["b"] == 8]
    main = ["qiskit/sqrt/input", "line/calibrated/input", "line/calibrated/two_settings"]
    own, beside = ([c for c in device if (c.axes["way"] in main) is among] for among in (True, False))
    assert Counter(c.axes["way"] for c in beside) == dict.fromkeys(configure("wall", []).study.beside, 3)
    assert {c.axes["noise"] for c in beside} == {"heron_r2"} and not any("rate" in c.axes for c in beside)
    for cell in own:
        circuit, estimate, sign = cell.axes["way"].split("/")
        c = cell.task.config
        assert (c.device.circuit, c.estimate.kind.value, c.signs.kind.value) == (circuit, estimate, sign)
        assert c.device.shots == 8192 and c.seed == 0 and set(cell.needs) == {"adapter", "base", "exact"}
        rate = cell.axes.get("rate")
        assert cell.axes["noise"] == (c.noise.name if rate is None else "paper")
        if rate is not None:  # every rate in proportion, readout too
            assert c.noise.cz == pytest.approx(rate) and cell.axes.get("null") is None
            assert c.noise.read_1_given_0 == pytest.approx(0.01 * rate / 1.78e-3)
    assert Counter(c.task.values for c in own) == {"trained": 3 * (2 + 4), "zero": 3, "shuffled": 3}
    chips = [c for c in own if c.axes["noise"] == "FakeMarrakesh"]
    assert {c.task.config.noise.calibration for c in chips} == {"FakeMarrakesh"}


def test_totals_of_shots_are_moved_for_the_ways_and_what_has_no_circuits_is_left_out():
    words = ["experiment=shots", "study.seeds=[0]", "study.dims=[8,16]", "study.beside=[merged/calibrated/input]"]
    cells, said = grid("wall", *words)
    device = [c for c in cells if c.axes.get("way")]
    moved = [c for c in device if "shots" in c.axes]
    assert len(moved) == 2 * 3 * 2 and all(c.task.config.device.shots == c.axes["shots"] for c in moved)
    assert [c.axes["b"] for c in device if c.axes["way"] == "merged/calibrated/input"] == [8]
    assert said == ["left out, circuit=merged signs=input at b=16: merged circuits are for b = 8"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study.ways=[line/calibrated]"], "give circuit/estimate/signs"),
        (["study.ways=[line/magic/input]"], "magic is none of sqrt, calibrated, soft, posterior"),
        (["study.ways=[line/sqrt/none]"], "none is none of input, exact, two_settings"),
        (["study.ways=[paper/sqrt/input]"], "use line, qiskit, merged, direct"),
        (["study.ways=[line/posterior/two_settings]"], "takes signs from x"),
        (["study.beside=[line/calibrated/input]"], "study.ways and study.beside=.*different values"),
        (["study.beside=[1]"], "study.beside=1: give circuit/estimate/signs"),
        (["adapter=circuit"], "this study's adapter is cayley"),
        (["study.shots=[4096,512]"], "rising order"),
        (["study.rates=[1e-2,1e-3]"], "rising order"),
        (["study.nulls=[nothing]"], "use zero, shuffled"),
        (["device=shots", "noise=none"], "device=noisy"),
        (["study.ways=[line/sqrt/two_settings]", "device.shots=1"], "share the shots"),
    ],
)
def test_ways_that_make_no_sense_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        configure("wall", words)


def test_an_unknown_noise_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"noise=nobody: no such option; noise has .*heron_r2"):
        grid("wall", "study.noises=[nobody]")


# --- recover


def test_recovers_arms_by_text_and_ratio(default):
    cells, _ = default["recover"]
    shifted = [(c.axes["what"], c.axes["b"]) for c in trained(cells, seed=0, text="shifted", ratio=0.6)]
    home = [(c.axes["what"], c.axes["b"]) for c in trained(cells, seed=0, text="home", ratio=0.6)]
    assert shifted == [
        ("adapter, distilled", 4), ("adapter, distilled", 16), ("adapter", 4), ("sign-constrained, distilled", 4),
        ("lora, distilled", 4), ("diagonal, distilled", 4), ("healing, distilled", 4),
    ]  # fmt: skip
    assert home == [("adapter, distilled", 4), ("lora, distilled", 4), ("healing, distilled", 4)]
    assert [(c.axes["what"], c.axes["b"]) for c in trained(cells, seed=0, ratio=1.0)] == [
        ("adapter", 4), ("adapter", 16), ("adapter", 4),
    ]  # fmt: skip
    assert values(trained(cells), "ratio") == [1.0, 0.75, 0.6]


def test_the_original_teaches_the_distilled_arms_and_no_other(default):
    for cell in trained(default["recover"][0]):
        taught = "distilled" in cell.axes["what"]
        assert cell.task.config.training.distill_weight == (0.5 if taught else 0.0)
        assert (cell.task.config.teacher is not None) == taught and cell.task.config.model.name == "nano"
        assert cell.task.config.adapter.sign_constrained == (cell.axes["what"] == "sign-constrained, distilled")
        assert ("model" in cell.needs) == (cell.axes["ratio"] < 1)
        if taught:
            assert cell.task.config.teacher == cell.task.config.model  # as configured; the pupil is the need's


def test_each_text_trains_measures_and_calibrates_on_its_own(default):
    cells, _ = default["recover"]
    names = {"shifted": "pydoc_clean", "home": "libdocs_sample"}
    for cell in cells:
        assert cell.task.config.data.name == names[cell.axes["text"]] and cell.task.config.data.clean
        if cell.task.kind == "compress":
            assert cell.task.config.compression.ratio == cell.axes["ratio"]
        elif cell.axes["ratio"] < 1:
            assert {axis: cell.needs["model"].axes[axis] for axis in ("text", "ratio")} == {
                axis: cell.axes[axis] for axis in ("text", "ratio")
            }


def test_a_compression_that_looks_at_no_text_is_made_once_for_both():
    cells, _ = grid("recover", "compression=svd", "study.seeds=[0]")
    made = {c.axes["text"]: c.needs["model"].task for c in trained(cells, ratio=0.6)}
    assert made["shifted"] == made["home"] and kinds(cells)["compress"] == 2


@pytest.mark.parametrize(("home", "kept"), [("libdocs_sample", False), ("libdocs", False), ("text", True)])
def test_nanos_own_text_is_home_to_no_other_model(home, kept):
    words = ["model=smollm2", f"data@home={home}", "study.seeds=[0]", *(["home.path=/own.txt"] if kept else [])]
    cells, said = grid("recover", *words)
    assert ("home" in values(cells, "text")) == kept
    assert kept or any("libdocs is nano's pretraining text, not that of smollm2" in line for line in said)


def test_a_measurement_is_compared_with_the_frozen_model_of_the_same_text_and_ratio(default):
    for cell in default["recover"][0]:
        if "base" in cell.needs:
            base = cell.needs["base"].axes
            assert (base["text"], base["ratio"], base["method"]) == (cell.axes["text"], cell.axes["ratio"], "none")
            assert cell.needs["base"].needs.get("model") is cell.needs.get("model")


def test_without_home_text_only_the_shifted_is_studied():
    cells, _ = grid("recover", "data@home=null", "study.seeds=[0]")
    assert values([c for c in cells if c.task.kind != "compress"], "text") == ["shifted"]
    assert kinds(cells) == {"compress": 2, "train": 2 + 2 * 7, "measure": 3 + 2 + 2 * 7}


def test_a_group_set_to_null_is_left_out_in_its_place_or_refused_in_one_line():
    assert configure("questions", ["model@original=null"]).original is None
    assert configure("recover", ["home=null"]).home is None
    with pytest.raises(InputError, match=r"model=null: no such option; model has .*nano"):
        configure("dim", ["model=null"])


def test_healing_trains_everything_at_its_own_rate(default):
    (cell, *_) = trained(default["recover"][0], what="healing, distilled")
    adapter = cell.task.config.adapter
    assert adapter.method == "healing" and adapter.layers == ["all"] and len(adapter.projections) == 7
    assert cell.task.parameters() is None and cell.task.config.training.lr == 0.0005


def test_recover_asks_for_ratios_below_one_and_one_set_of_sites():
    for word, message in (("study.ratios=[1.0]", "between 0 and 1"), ("study.ratios=[0.5,0.5]", "different"),
                          ("study.sites=[all,one]", "one set of sites"), ("compression.bond=4", "study")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            configure("recover", [word])


# --- questions


def test_arms_are_original_model_adapter_and_device(tmp_path):
    folder = str(tmp_path)
    words = ["model@original=nano", f"adapter.path={folder}", "device=noisy", "noise=paper"]
    cells, _ = grid("questions", *words)
    assert [(c.axes["arm"], c.task.circuits, c.task.config.adapter.path) for c in cells] == [
        ("original", False, None), ("compressed", False, None), ("adapter", False, folder),
        ("adapter on noisy", True, folder), ("shuffled K", False, folder), ("K = 0 on noisy", True, folder),
    ]  # fmt: skip
    assert [c.task.values for c in cells] == ["trained"] * 4 + ["shuffled", "zero"]
    arms = [c.axes["arm"] for c in grid("questions", f"adapter.path={folder}")[0]]
    assert arms == ["model", "adapter", "shuffled K"]
    with pytest.raises(InputError, match="no adapter to run there"):
        grid("questions", "device=noisy")


def test_the_first_question_of_a_file_is_told_before_anything_runs(tmp_path):
    (tmp_path / "quiz.csv").write_text("Is it wet?,yes,no,B\nIs\x1b it red?,a bit,no,A\n")
    _, told = grid("questions", "questions=own", f"questions.path={tmp_path / 'quiz.csv'}", "questions.examples=1")
    assert told == [
        f"questions: 1 from {tmp_path / 'quiz.csv'}; the first 1 rows are examples and not scored, of which",
        "  quiz 1: Is it red?  *a bit | no",
    ]
    picked = ["questions.subjects=[quiz]", "questions.pick=[1]", "questions.reported=[always no]"]
    _, told = grid("questions", "questions=own", f"questions.path={tmp_path / 'quiz.csv'}", *picked)
    assert told[1:] == ["  quiz 1: Is it red?  *a bit | no", "    the paper: always no"]
    with pytest.raises(InputError, match=r"questions\.source=mmlu\): give questions\.path="):
        grid("questions", "questions=own")


@pytest.mark.parametrize(("text", "asked", "refused"), [
    ("pydoc", "continuation", True), ("pydoc_clean", "continuation", False), ("pydoc", "mmlu", False),
])  # fmt: skip
def test_an_adapter_is_not_asked_about_documents_that_it_was_trained_on(tmp_path, text, asked, refused):
    (tmp_path / "qrun.json").write_text(json.dumps({"facts": {"data": text}}))
    config = configure("questions", [f"adapter.path={tmp_path}", f"questions={asked}"])
    with pytest.raises(InputError, match="train it on data=pydoc_clean") if refused else nullcontext():
        check_unseen(config)


# --- circuits


def test_circuits_and_cuts_stand_beside_the_dim_studys_cayley_blocks(default):
    cells, _ = default["circuits"]
    theirs = [c.task.config for c in trained(default["dim"][0], sites="all", method="cayley")]
    assert all(c.task.config in theirs for c in trained(cells, method="cayley"))
    written = {(c.axes["b"], c.axes["czs"]) for c in trained(cells, method="circuit")}
    assert written == {(8, k) for k in (2, 6, 14)} | {(64, 10)}
    for cell in trained(cells, method="circuit"):
        c = cell.task.config.adapter
        assert (c.dim, c.options, c.projections) == (
            cell.axes["b"], {"czs": cell.axes["czs"]}, theirs[0].adapter.projections
        )  # fmt: skip
    cuts = [c for c in cells if c.axes.get("null") == "cut"]
    assert {c.task.values for c in cuts} == {f"cut{k}" for k in (2, 4, 6, 10)}
    assert all(c.task.czs == c.axes["czs"] and c.needs["adapter"].axes["method"] == "cayley" for c in cuts)
    assert all("adapters.cut" in c.task.modules for c in cuts)
    device = [c for c in cells if c.axes.get("noise")]
    settings = {(c.axes["noise"], c.task.config.noise.name, c.task.config.device.circuit,
                 c.task.config.estimate.kind.value, c.task.config.signs.kind.value) for c in device}  # fmt: skip
    assert settings == {("heron_r2", "heron_r2", "line", "calibrated", "two_settings")}
    assert {c.axes["b"] for c in device} == {8} and all(c.task.circuits for c in device)
    assert all("adapters.cut" not in c.task.modules for c in default["dim"][0] if c.task.kind == "measure")


@pytest.mark.parametrize(("k", "b", "lr"), [(2, 8, 4 / 5), (6, 8, 4 / 9), (14, 8, 4 / 17), (10, 64, 4 / 16)])
def test_the_rate_of_circuits_falls_with_the_directions_they_turn_a_block_in(default, k, b, lr):
    from qrun.adapters.methods import spec

    for cell in trained(default["circuits"][0], method="circuit", b=b, czs=k):
        assert cell.task.config.training.lr == pytest.approx(spec("circuit").lr * lr, rel=1e-12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study.czs=[3]"], r"study\.czs=3: .*even numbers from 2"),
        (["study.cuts=[0]"], r"study\.cuts=0: .*even numbers from 2"),
        (["study.czs=[2,2]"], "different values"),
        (["study.dims=[6]"], r"study\.dims=6: give powers of two"),
        (["study.wide=[48]"], r"study\.wide=48: give powers of two"),
        (["study.controls=[lora]"], "qrun sweep controls"),
        (["study.cuts=[2,2]"], "different values"),
        (["adapter=circuit"], "adapter.method=circuit: this study's adapter is cayley"),
        (["circuit=qiskit"], "they stand on device.circuit=line"),
        (["device=shots"], "study.noises are for device=noisy"),
        (["study.noises=[nothing]"], "noise=nothing: no such option"),
    ],
)
def test_circuits_that_make_no_sense_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        list(module("circuits").cells(configure("circuits", words), print))


# --- sites, frontier


def test_counts_of_sites_grow_from_the_papers_to_all_and_find_the_trainings_of_other_studies(default):
    cells, _ = default["sites"]
    own = trained(cells, b=4, seed=0)
    assert [c.axes["count"] for c in own] == [1, 2, 4, 8, 16, 42]
    assert [c.task.config.adapter.count for c in own] == [None, 2, 4, 8, 16, None]
    one, whole = (trained(default["dim"][0], method="cayley", b=4, seed=0, sites=s)[0] for s in ("one", "all"))
    assert (own[0].task.config.adapter, own[-1].task.config.adapter) == (
        one.task.config.adapter, whole.task.config.adapter,
    )  # fmt: skip
    orders = {seed: [c.task.config.adapter.order for c in trained(cells, b=4, seed=seed)] for seed in (0, 3)}
    assert orders == {0: [0] * 6, 3: [3, 3, 3, 3, 3, 0]}  # of all sites there is one
    other = trained(cells, b=4, seed=3)
    assert other[0].task.config.adapter.count == 1 and other[-1].task.config.adapter == own[-1].task.config.adapter
    assert [c.needs["rate"].task for c in other] == [c.needs["rate"].task for c in own]  # one scan for every order
    some, said = grid("sites", "study.counts=[2,42,43]", "study.dims=[4]", "study.seeds=[0]")
    assert [c.axes["count"] for c in trained(some)] == [2, 42] and said == ["left out, count=43: there are 42 sites"]
    once, _ = grid("sites", "study.counts=[1,42,null]", "study.dims=[4]", "study.seeds=[0]")
    assert [c.axes["count"] for c in trained(once)] == [1, 42]
    only = trained(grid("sites", "study.sites=[layer]", "study.counts=[1]", "study.dims=[4]", "study.seeds=[0]")[0])
    assert only[0].task.config.adapter.count == 1 and only[0].task.config.adapter.layers == ["last"]


def test_every_way_is_measured_on_the_same_adapter_with_its_own_circuit(default):
    cells = [c for c in default["sites"][0] if c.axes.get("way")]
    for cell in cells:
        found = cell.task.config
        words = (found.device.circuit, found.estimate.kind.value, found.signs.kind.value)
        assert (
            "/".join(words) == cell.axes["way"]
            and found.noise.name == "paper"
            and set(cell.needs) == {"adapter", "base", "exact"}
        )
    assert values(cells, "way") == ["line/sqrt/input", "line/calibrated/two_settings"]


@pytest.mark.parametrize(
    ("words", "text"),
    [(["study.counts=[0]"], r"study.counts"), (["study.controls=[lora]"], "sweep frontier"),
     (["device=exact"], "device"), (["study.ways=[line/sqrt]"], "circuit/estimate/signs")],
)  # fmt: skip
def test_the_study_of_sites_refuses_what_it_cannot_do(words, text):
    with pytest.raises(InputError, match=text):
        grid("sites", *words)


def test_the_frontier_has_every_size_of_a_control_once(default):
    cells, _ = default["frontier"]
    for sites in ("one", "layer", "all"):
        lora = trained(cells, method="lora", sites=sites, seed=0)
        sizes = [c.task.parameters() for c in lora]
        assert sizes == sorted(set(sizes)) and len(trained(cells, method="diagonal", sites=sites, seed=0)) == 1
        dims = [c.task.config.adapter.dim for c in trained(cells, method="cayley", sites=sites, seed=0)]
        assert dims == [2, 8, 64]
    layer = trained(cells, sites="layer")[0].task.config.adapter
    assert len(layer.projections) == 7 and layer.layers == ["last"]
    least, most = (f([c.task.parameters() for c in trained(cells, method="cayley")]) for f in (min, max))
    assert least == 96 and most == 314_496


# --- ladder


@pytest.fixture
def rungs(tmp_path):
    """Two more rungs, of 4 and 8 layers, without weights."""
    folder = local_folder(configure("ladder", ["study.rungs=[]"]).model)
    found = []
    for layers, optimizer in ((4, "adamw"), (8, "muon")):
        rung = tmp_path / f"{layers}-{optimizer}"
        rung.mkdir()
        for name, change in (("config.json", {"num_hidden_layers": layers}), (LADDER_RECORD, {"optimizer": optimizer})):
            (rung / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
        found.append(rung)
    return found


def ladder(rungs, *words):
    return grid("ladder", f"study.rungs=[{','.join(map(str, rungs))}]", *words)


def test_every_rung_has_the_same_cells_and_its_own_sizes(rungs):
    cells, said = ladder(rungs)
    # per rung, site set and b: adapter and LoRA of 3 seeds, exact, and the adapter at the preset and 10 rates; at home
    # the model, the compressed one, and 3 adapters of it
    one = {"scan": 2 * 2 * 2 + 1, "train": 3 * 2 * 2 * 2 + 3, "compress": 1, "measure": 1 + 4 * 3 * (2 + 11) + 2 + 3}
    assert kinds(whole(cells)) == {kind: 3 * count for kind, count in one.items()} and said == []
    frozen = [cell for cell in cells if "size" in cell.axes]
    assert [(c.axes["rung"], c.axes["optimizer"]) for c in frozen] == [
        ("nano", "muon"), ("4-adamw", "adamw"), ("8-muon", "muon"),
    ]  # fmt: skip
    sizes = [c.axes["size"] for c in frozen]
    assert sizes[0] == 3_148_224 and sizes[2] - sizes[0] == sizes[0] - sizes[1] == 2 * (sizes[0] - 192 * 4097) / 6
    assert {c.task.parameters() for c in trained(cells, sites="one", b=4, method="cayley")} == {288}
    assert [c.task.config.adapter.layers for c in trained(cells, sites="one", seed=0, b=4)] == [["last"]] * 6
    for cell in cells:
        model = cell.task.config.model
        assert model.name == cell.axes["rung"] and (model.path is None) == (model.name == "nano")


def test_nanos_rung_is_made_of_cells_of_other_studies(default):
    cells, _ = grid("ladder", "study.rungs=[]")

    def tasks(cells, **axes):
        return {repr(c.task) for c in cells if all(c.axes.get(key) == value for key, value in axes.items())}

    noisy = {**{"axis": "gates", "sites": "one"}, "sign": "input"}
    mine, theirs = tasks(cells, axis="gates", sites="one"), tasks(default["noise"][0], **noisy)
    assert mine and mine < theirs
    home = {repr(c.task) for c in trained(cells, text="home")}
    assert home and home < {repr(c.task) for c in trained(default["recover"][0], text="home", ratio=0.75)}
    lora = {repr(c.task) for c in trained(cells, method="lora")}
    assert len(lora) == 12 and lora < {repr(c.task) for c in trained(default["dim"][0], method="lora")}


@pytest.mark.parametrize(
    ("words", "text"),
    [(["study.ratios=[1.0]"], r"study.ratios"), (["study.rates=[1e-2,1e-3]"], r"study.rates"),
     (["data@home=null"], r"study.ratios=\[0.75\]: compression is judged on data@home"),
     (["protocol@second=lm_eval_wikitext"], "second"), (["compression.bond=4"], "compression.bond"),
     (["study.rates=[0.9]"], r"study.rates=0.9: "), (["study.ratios=[1e-300]"], r"study.ratios=1e-300: "),
     (["study.dims=[6]"], r"study.dims"), (["device=exact"], "device")],
)  # fmt: skip
def test_the_ladder_refuses_what_it_cannot_do(rungs, words, text):
    with pytest.raises(InputError, match=text):
        ladder(rungs, *words)


@pytest.mark.parametrize(
    ("study", "words", "text"),
    [("noise", ["study.dims=[2]", "study.axes=[gates]"], r"study\.axes=\['gates'\], study.dims=\[2\]: .*no rate"),
     ("noise", ["circuit=merged", "study.dims=[4]"], "no rate to measure at"),
     ("wall", ["study.dims=[4]", "study.ways=[merged/calibrated/input]", "study.beside=[]"], r"study\.ways=.*circuits"),
     ("sites", ["study.dims=[4]", "study.ways=[merged/calibrated/input]"], r"study\.ways=.*none of these"),
     ("circuits", ["study.czs=[]", "study.cuts=[]", "study.wide=[]", "study.others=[]"], r"study\.czs=.*name some k")],
)  # fmt: skip
def test_a_grid_with_nothing_left_on_its_axis_is_refused_before_it_is_computed(study, words, text):
    with pytest.raises(InputError, match=text):
        grid(study, *words)


@pytest.mark.parametrize("study", ["dim", "controls", "noise"])
def test_studies_whose_numbers_are_of_cayley_blocks_refuse_another_adapter(study):
    with pytest.raises(InputError, match=r"adapter\.method=circuit: this study's adapter is cayley"):
        grid(study, "adapter=circuit")


def test_a_rung_is_a_model_of_known_text_with_a_name_of_its_own(rungs, tmp_path):
    (rungs[0] / LADDER_RECORD).write_text("{}")
    with pytest.raises(InputError, match=r"study.rungs=\S+4-adamw: .*optimizer"):
        ladder(rungs)
    record = json.loads((rungs[1] / LADDER_RECORD).read_text())
    (rungs[0] / LADDER_RECORD).write_text(json.dumps(record | {"corpus": {"digest": "0123"}}))
    with pytest.raises(InputError, match=r"study.rungs=\S+4-adamw: .*pretraining text is not the first rung's"):
        ladder(rungs)
    (rungs[0] / LADDER_RECORD).unlink()
    with pytest.raises(InputError, match=r"study.rungs=\S+4-adamw: no training_record.json there; rungs are made by"):
        ladder(rungs)
    with pytest.raises(InputError, match=r"study.rungs=models/none: model.path=models/none: no such folder"):
        ladder(["models/none"])
    (tmp_path / "other").mkdir()
    rungs[1].rename(tmp_path / "other" / "nano")
    with pytest.raises(InputError, match=r"study.rungs=\S+nano: another rung has this name"):
        ladder([tmp_path / "other" / "nano"])
