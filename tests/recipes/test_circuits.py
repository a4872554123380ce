"""Adapters on devices, plans, generation and drawings, as a user types them."""

import pytest
from tests_support import PATIENCE

from qrun.tracking.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapter(tiny_folder, story_file, tmp_path_factory):
    """A trained adapter on the tiny model, and the words that measure it."""
    from qrun.config.compose import compose
    from qrun.recipes.train import train

    results = tmp_path_factory.mktemp("circuits") / "results"
    model = ["model=local", f"model.path={tiny_folder}"]
    words = [*model, "data=text", f"data.path={story_file}", f"results={results}", "protocol.ctx=64"]
    steps = ["training.context=64", "training.batch=2", "training.steps=8", "training.lr=0.05", "training.warmup=1"]
    folder = train(
        compose("train", [*words, *steps, "adapter.projections=[v_proj]", "adapter.layers=last", "name=source"])
    )
    small = ["evaluation.max_tokens=640", "evaluation.resamples=99"]
    return folder, model, [*words, f"adapter.path={folder}", *small], Store(results)


def measure(qrun, adapter, name, *words):
    code, out, err = qrun("eval", "perplexity", *adapter[2], f"name={name}", *words)
    assert code == 0, err
    return adapter[3].find(name).data, out


def test_circuits_without_shots_noise_or_sign_rule_give_the_exact_perplexity(qrun, adapter):
    for device in ("shots", "noisy", "pennylane"):
        data, _ = measure(qrun, adapter, f"exact-{device}", f"device={device}", "device.shots=null", "signs=exact")
        assert data.metrics[f"{device}/perplexity"] == pytest.approx(data.metrics["adapted/perplexity"], rel=1e-4)
        assert data.tags["device"] == device and data.metrics["circuit/relative_error"] < 1e-3


def test_documents_padded_to_one_length_run_the_circuits_of_documents_alone(qrun, adapter):
    """Under shots, where the same circuits in another order would give another perplexity."""
    words = ["protocol=lm_eval_wikitext", "device=noisy", "noise=paper", "device.shots=200"]
    found = [measure(qrun, adapter, f"batch-{n}", *words, f"evaluation.batch={n}")[0].metrics for n in (1, 3)]
    assert found[0]["circuit/circuits"] == found[1]["circuit/circuits"] > 0
    assert found[1]["noisy/perplexity"] == pytest.approx(found[0]["noisy/perplexity"], rel=1e-5)
    assert found[0]["noisy/perplexity"] != pytest.approx(found[0]["adapted/perplexity"], rel=1e-4)


def test_estimates_and_signs_are_words_of_a_measurement(qrun, adapter):
    found = {}
    for words in ("signs=input", "estimate=calibrated", "estimate=calibrated signs=two_settings"):
        more = ["device=noisy", "noise=heron_r2", "noise.factor=5", *words.split()]
        data, _ = measure(qrun, adapter, f"way-{len(found)}", *more)
        found[words] = data.metrics
        assert data.params["estimate.kind"] == ("calibrated" if "calibrated" in words else "sqrt")
    errors = [metrics["circuit/relative_error"] for metrics in found.values()]
    assert errors[0] > errors[1] > errors[2]
    assert found["signs=input"]["circuit/calibration_circuits"] == 0 < found["estimate=calibrated"]["circuit/survival"]


def test_the_sign_rule_is_exact_for_sign_constrained_adapters(qrun, adapter, tmp_path):
    from qrun.config.compose import compose
    from qrun.recipes.train import train

    words = [w for w in adapter[2] if not w.startswith(("adapter.path", "results"))] + [f"results={tmp_path}"]
    steps = [
        "training.context=64",
        "training.batch=2",
        "training.steps=6",
        "training.lr=0.1",
        "training.warmup=0",
        "adapter.sign_constrained=true",
    ]
    folder = train(compose("train", [*words, *steps, "adapter.layers=last"]))
    code, _, err = qrun(
        "eval", "perplexity", *words, f"adapter.path={folder}", "device=shots", "device.shots=null", "name=constrained"
    )
    assert code == 0, err
    metrics = Store(tmp_path).find("constrained").data.metrics
    assert metrics["shots/perplexity"] == pytest.approx(metrics["adapted/perplexity"], rel=1e-5)
    assert (
        metrics["circuit/sign_flips"] > 0
    )  # the rotation does change signs; the forward pass restores them as the readout does


def test_devices_that_share_a_noise_model_agree(qrun, adapter):
    found = {}
    for device in ("noisy", "aer"):
        data, out = measure(
            qrun,
            adapter,
            f"heron-{device}",
            f"device={device}",
            "noise=heron_r2",
            "device.shots=null",
            "evaluation.max_tokens=64",
        )
        found[device] = data.metrics[f"{device}/perplexity"]
        assert data.tags["noise"] == "heron_r2" and data.tags["noise_date"] == "2025-02-26" and "sign flips" in out
    assert found["noisy"] == pytest.approx(found["aer"], rel=1e-5)


def test_noise_costs_more_when_it_is_scaled_and_the_same_seed_repeats(qrun, adapter):
    words = ["device=noisy", "noise=paper", "signs=exact"]
    one, _ = measure(qrun, adapter, "paper", *words)
    again, _ = measure(qrun, adapter, "paper-again", *words, "evaluation.batch=3")
    ten, _ = measure(qrun, adapter, "paper-10", *words, "noise.factor=10")
    assert again.metrics["noisy/perplexity"] == pytest.approx(one.metrics["noisy/perplexity"], rel=1e-5)
    assert ten.metrics["circuit/relative_error"] > 2 * one.metrics["circuit/relative_error"] > 0
    assert one.metrics["penalty"] == pytest.approx(
        one.metrics["noisy/perplexity"] - one.metrics["adapted/perplexity"], rel=1e-6
    )


@pytest.mark.long
def test_a_recorded_processor_measures_and_resumes_from_its_counts(qrun, adapter):
    words = ["device=fake", "device.shots=256", "protocol.ctx=4", "evaluation.max_tokens=4"]
    first, _ = measure(qrun, adapter, "fake", *words)
    again, _ = measure(qrun, adapter, "fake-again", *words)
    assert again.metrics["fake/perplexity"] == first.metrics["fake/perplexity"]
    assert again.tags["processor"] == "fake_marrakesh" and again.tags["calibration_time"].startswith("2025-02-26")
    assert int(again.tags["qpu_jobs"]) > 0 and "qpu_seconds" not in again.tags  # a simulation has an estimate only
    assert again.metrics["circuit/circuit_seconds"] < first.metrics["circuit/circuit_seconds"] / 3
    code, out, _ = qrun("qpu", "fetch", "--results", adapter[3].folder)
    assert code == 0 and "fetched" in out and "fake_marrakesh" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["device=nope"], "device has aer, exact, fake"),
        (["device=noisy", "noise=nope"], "noise has FakeFez"),
        (["device=shots", "noise=paper"], "device.kind=shots has no noise model"),
        (["device=noisy", "noise=gates", "noise.cz=0.9"], r"noise.cz=0.9"),
        (["device=noisy", "noise=gates", "noise.t1_us=10", "noise.t2_us=30"], "T2 cannot exceed 2 noise.t1_us"),
        (["device=noisy", "device.shots=0"], "device.shots=0"),
        (["device=fake", "device.shots=null"], "fake only counts"),
        (["device=fake", "device.backend=FakeNowhere"], "recorded backends are"),
        (["device=ibm"], "QISKIT_IBM_TOKEN"),
        (["device=aer", "device.backend=statevector"], "density_matrix"),
        (["device=pennylane", "noise=paper", "device.backend=default.qubit"], "use default.mixed"),
        (["device=noisy", "adapter.path=null"], "no adapter to run there"),
        (["signs.kind=maybe"], "expected one of"),
    ],
)
def test_bad_devices_end_in_one_line_and_leave_the_store_alone(qrun, adapter, monkeypatch, tmp_path, words, said):
    monkeypatch.delenv("QISKIT_IBM_TOKEN", raising=False)
    typed = [w for w in adapter[2] if not w.startswith("results")]
    code, _, err = qrun("eval", "perplexity", *typed, f"results={tmp_path / 'r'}", *words)
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "r").exists()


def test_a_budget_too_small_sends_nothing(qrun, adapter):
    code, _, err = qrun(
        "eval",
        "perplexity",
        *adapter[2],
        "device=fake",
        "device.budget_s=1",
        "protocol.ctx=9",
        "evaluation.max_tokens=9",
        "name=poor",
    )
    assert code == 2 and "it was not sent" in err and adapter[3].find("poor").info.status == "FAILED"


def test_an_adapter_that_is_no_circuit_names_the_nearest_dimension(qrun, adapter, tmp_path):
    from qrun.config.compose import compose
    from qrun.recipes.train import train

    words = [w for w in adapter[2] if not w.startswith(("adapter.path", "results"))] + [f"results={tmp_path}"]
    steps = [
        "training.context=64",
        "training.batch=1",
        "training.steps=1",
        "training.warmup=0",
        "adapter.projections=[down_proj]",
    ]
    folder = train(compose("train", [*words, *steps, "adapter.dim=6"]))
    code, _, err = qrun("eval", "perplexity", *words, f"adapter.path={folder}", "device=noisy")
    assert code == 2 and "nearest that do are 4 and 8" in err


def test_a_plan_prices_settings_and_calibration(qrun):
    """Twice the circuits of half the shots; 16 known slices a block and setting, 16 of all |0> and as many of |1>."""
    code, out, err = qrun("plan", "adapter=circuit", "adapter.dim=8")
    assert code == 0 and "1,248, 18,720" in out and "9 CZ" in out, err
    assert qrun("plan", "adapter=circuit", "adapter.dim=8", "adapter.options.czs=5")[0] == 2
    code, out, err = qrun("plan", "model=llama", "estimate=calibrated", "signs=two_settings")
    assert code == 0, err
    for words in ("circuits per token 32", "circuits for 83 tokens 2,656", "executions at 4,096 shots 10,878,976",
                  "circuits of known outcome, QPU time 544,"):  # fmt: skip
        assert words in " ".join(out.split())


def test_the_plan_of_the_paper_is_found_from_the_models_shape(qrun):
    code, out, err = qrun("plan", "model=llama")
    assert code == 0, err
    for words in (
        "64 of 2 qubits (128 of 156 that work)",
        "1,328",
        "10,878,976",
        "63.5 min",
        "265.6 min",
        "6,144",
        "3 CZ",
    ):
        assert words in out
    code, out, _ = qrun("plan", "model=smollm2", "adapter=cayley", "device=fake", "device.budget_s=60")
    assert code == 0 and "37,440" in out and "left out" in out and "over budget" in out and "2025-02-26" in out
    assert qrun("plan", "model=llama", "adapter.dim=3")[0] == 2
    assert qrun("plan", "device=noisy")[0] == 2


def test_a_chip_and_a_circuit_are_drawn_to_a_file(qrun, tmp_path):
    code, out, err = qrun("plan", "model=llama", "--draw", tmp_path / "chip.png")
    assert code == 0 and "picture written" in out, err
    assert (tmp_path / "chip.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = qrun("circuit", "dim=4", "--draw", tmp_path / "block.svg")
    assert code == 0 and "measurement" in out, err
    drawn = (tmp_path / "block.svg").read_text()
    assert all(f"<!-- {word} -->" in drawn for word in ("preparation", "Q", "measure", "bit 0", "bit 1"))
    code, _, err = qrun("plan", "model=llama", "--draw", tmp_path / "chip.txt")
    assert code == 2 and ".png, .svg, .pdf" in err


def test_the_marks_of_a_circuit_stand_between_its_parts():
    from qrun.quantum.circuits import generic, to_qiskit
    from qrun.quantum.synthesis import path
    from qrun.recipes.circuit import gates_of, marked

    circuits, angles = generic(8, path(3)), [0.1] * 7
    whole = to_qiskit(circuits, 0, angles)
    parts = [[]]
    for instruction in marked(whole, circuits).data:
        if instruction.operation.name == "barrier":
            parts.append([])
        else:
            parts[-1].append(instruction.operation.name)
    assert [part.count("cz") for part in parts] == [3, 14, 0] and parts[2] == ["measure"] * 3
    assert sum(map(len, parts)) == len(whole.data)
    gates = list(gates_of(circuits, angles))
    assert [sum(g.words == "CZ" for g in gates if g.part == part) for part in range(3)] == [3, 14, 0]


def test_text_is_generated_the_same_on_exact_and_on_noiseless_circuits(qrun, adapter):
    words = [*adapter[1], f"adapter.path={adapter[0]}", "tokens=6", "temperature=0"]
    code, exact, err = qrun("generate", "the model reads", *words)
    assert code == 0, err
    code, circuits, err = qrun(
        "generate", "the model reads", *words, "device=shots", "device.shots=null", "signs=exact"
    )
    assert code == 0, err
    assert circuits.splitlines()[0] == exact.splitlines()[0] and exact.startswith("the model reads")
    assert "6 tokens in" in circuits and "circuits " in circuits
    assert qrun("generate", " ", *words)[0] == 2
    code, _, err = qrun("generate", "x", *adapter[1], "tokens=200")
    assert code == 2 and "128 positions" in err


def test_sampled_text_repeats_by_seed(qrun, adapter):
    words = [*adapter[1], "tokens=8", "temperature=1.5"]
    texts = [qrun("generate", "a block", *words, f"seed={seed}")[1].splitlines()[0] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_block_circuit_is_drawn_counted_and_exported(qrun, adapter, tmp_path):
    code, out, err = qrun("circuit", f"adapter.path={adapter[0]}", "block=2", "--qasm", tmp_path / "b.qasm")
    assert code == 0, err
    assert "3 CZ" in out and "preparation 1 CZ" in out and "v_proj block 2" in out
    from qiskit import qasm3

    assert "measure" in (tmp_path / "b.qasm").read_text() and hasattr(qasm3, "dumps")
    assert qrun("circuit", f"adapter.path={adapter[0]}", "block=8")[0] == 2
    assert qrun("circuit", f"adapter.path={adapter[0]}", "site=layers.9.mlp.up_proj")[0] == 2
    code, out, _ = qrun("circuit", "dim=16", "noise=heron_r2")
    assert code == 0 and "4 qubits" in out


@pytest.mark.long
def test_the_first_circuit_says_that_it_compiles_and_the_next_does_not(start, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    said = []
    for _ in range(2):
        process = start("circuit")
        assert process.wait(PATIENCE) == 0, process.told()
        said.append("compiling the simulator once" in process.told())
    assert said == [True, False]


def test_a_preset_is_refreshed_from_a_calibration(qrun, tmp_path):
    import yaml

    from qrun.config.tree import TREE
    from qrun.quantum.calibration import calibration

    code, _, err = qrun("qpu", "noise", "FakeTorino", "--out", tmp_path / "heron_r1.yaml")
    assert code == 0, err
    written = yaml.safe_load((tmp_path / "heron_r1.yaml").read_text())
    shipped = yaml.safe_load((TREE / "noise" / "heron_r1.yaml").read_text())
    chip = calibration("FakeTorino")
    assert written.keys() == shipped.keys() and {key: float(written[key]) for key in chip.medians} == chip.medians
    assert qrun("qpu", "noise", "FakeTorino", "--out", tmp_path / "chip.json")[0] == 0
    assert calibration(str(tmp_path / "chip.json")) == chip
    assert qrun("qpu", "noise", "FakeNowhere", "--out", tmp_path / "x.yaml")[0] == 2
    (tmp_path / "no").write_text("a file")
    assert qrun("qpu", "noise", "FakeTorino", "--out", tmp_path / "no" / "x.yaml")[0] == 2
    assert qrun("qpu", "fetch", "--results", tmp_path)[0] == 2
