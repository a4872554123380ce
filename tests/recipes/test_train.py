"""The recipes end to end on a tiny random model and made-up text, as a user types them."""

import json
import os
import signal
import socket
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file
from tests_support import PATIENCE, until

from qrun.recipes.perplexity import recorded
from qrun.tracking.store import Store

pytestmark = pytest.mark.slow
SMALL = [
    "protocol.ctx=64",
    "training.context=64",
    "training.batch=2",
    "training.eval_every=2",
    "training.checkpoint_every=1",
    "training.warmup=1",
    "training.threads=1",
]


@pytest.fixture(scope="module")
def words(tiny_folder, story_file, tmp_path_factory):
    """Words of a small training run, and its store."""
    results = tmp_path_factory.mktemp("runs") / "results"
    return [
        "model=local",
        f"model.path={tiny_folder}",
        "data=text",
        f"data.path={story_file}",
        f"results={results}",
        *SMALL,
    ], results


@pytest.fixture(scope="module")
def trained(words):
    """A finished run: folder of its adapter, and the store."""
    from qrun.config.compose import compose
    from qrun.recipes.train import train

    folder = train(compose("train", [*words[0], "training.steps=12", "training.lr=0.05", "name=done"]))
    return folder, Store(words[1])


def perplexity_words(words):
    return [w for w in words if not w.startswith("training.")]


def test_a_run_leaves_everything_that_design_and_reader_ask_for(trained):
    folder, store = trained
    run = store.find("done")
    assert run.info.status == "FINISHED"
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    assert metrics["gain"] == pytest.approx(metrics["base/perplexity"] - metrics["adapted/perplexity"], rel=1e-6)
    assert metrics["gain_low"] <= metrics["gain"] <= metrics["gain_high"] and metrics["gain_low"] > 0
    assert params["adapter.dim"] == "4" and params["sites"] == "14" and params["parameters"] == "720"
    assert tags["qrun.version"] == version("qrun-adapters")
    assert {
        "git_sha",
        "git_dirty",
        "config_hash",
        "protocol_fingerprint",
        "model_weights",
        "data_digest",
        "compute",
        "seed",
    } <= set(tags)
    artifacts = {a.path for a in store.client.list_artifacts(run.info.run_id)}
    assert {
        "config.yaml",
        "env.json",
        "protocol.json",
        "perplexity_base.json",
        "perplexity_adapted.json",
        "adapter",
        "figures",
        "result.json",
    } <= artifacts
    assert len(store.client.get_metric_history(run.info.run_id, "train/loss")) == 12
    assert len(run.inputs.dataset_inputs) == 3
    assert sorted(p.name for p in folder.parent.iterdir()) == ["adapter"]  # no checkpoint is left behind


def test_a_saved_adapter_measures_the_same_when_it_is_loaded_again(qrun, words, trained):
    folder, store = trained
    code, out, err = qrun("eval", "perplexity", *perplexity_words(words[0]), f"adapter.path={folder}", "name=again")
    assert code == 0, err
    first, again = store.find("done").data.metrics, store.find("again").data.metrics
    assert again["adapted/perplexity"] == first["adapted/perplexity"] and again["gain_low"] == first["gain_low"]
    assert f"{first['adapted/perplexity']:.3f}" in out


def test_an_evaluation_draws_passages_until_its_interval_is_narrow(qrun, words, trained):
    folder, store = trained
    own = [*perplexity_words(words[0]), f"adapter.path={folder}", "evaluation.sample=passages", "protocol.ctx=32"]
    code, out, err = qrun("eval", "perplexity", *own, "evaluation.max_tokens=100", "evaluation.precision=0.4", "name=p")
    assert code == 0, err
    looks = [line.split() for line in out.splitlines() if line.startswith("look ")]
    assert 1 < len(looks) < 9 and "no interval" in out and f"looked at {len(looks)} times" in out
    run = store.find("p")
    stated = json.loads(store.artifact_text(run.info.run_id, "protocol.json"))
    assert (stated["looks"], stated["max_tokens"]) == (len(looks), 100 * 2 ** (len(looks) - 1))
    base, adapted = (recorded(f"p:{which}", store) for which in ("base", "adapted"))
    assert base.tokens == adapted.tokens and dict(base.statement) == stated
    assert base.fingerprint == adapted.fingerprint == run.data.tags["protocol_fingerprint"]
    half = (run.data.metrics["gain_high"] - run.data.metrics["gain_low"]) / 2 / base.perplexity
    assert half <= 0.4 and f"{half:.2%}" in out
    code, out, err = qrun("eval", "perplexity", *own, "evaluation.max_tokens=800", "evaluation.precision=1e-6")
    assert code == 0 and "the text has no more passages" in out, err


@pytest.mark.parametrize("kind", ["fixed_window", "lm_eval_wikitext"])
def test_a_look_that_adds_no_passage_is_no_end_of_the_text(qrun, words, kind):
    """Twice three tokens are no second window, and no second document where documents are scored whole."""
    own = [*perplexity_words(words[0]), f"protocol={kind}", "protocol.ctx=64", "evaluation.sample=passages"]
    code, out, err = qrun("eval", "perplexity", *own, "evaluation.max_tokens=3", "evaluation.precision=0.5")
    looks = [line for line in out.splitlines() if line.startswith("look ")]
    assert code == 0 and len(looks) > 1 and f"looked at {len(looks)} times" in out, (out, err)
    tokens = [int(line.split()[2].replace(",", "")) for line in looks]
    assert tokens == sorted(set(tokens))


def test_precision_needs_passages_and_studies_one_text(qrun, words):
    own = perplexity_words(words[0])
    code, _, err = qrun("eval", "perplexity", *own, "evaluation.sample=whole", "evaluation.precision=0.01")
    assert code == 2 and err.startswith("qrun: evaluation.precision=0.01: it draws passages")
    drawn = ["evaluation.sample=passages", "evaluation.max_tokens=100", "evaluation.precision=0.01"]
    code, _, err = qrun("eval", "perplexity", "-m", *own, *drawn)
    assert code == 2 and err.startswith(
        "qrun: evaluation.precision=0.01: the cells of a study are compared on one text"
    )


def test_recorded_runs_compare_in_pairs_and_refuse_other_protocols(qrun, words, trained):
    code, out, _ = qrun("eval", "compare", "done:base", "done", "--results", words[1])
    assert code == 0 and f"{trained[1].find('done').data.metrics['gain']:+.4f}" in out
    code, _, err = qrun("eval", "perplexity", *perplexity_words(words[0]), "protocol.ctx=32", "name=other")
    assert code == 0, err
    code, _, err = qrun("eval", "compare", "done", "other", "--results", words[1])
    assert code == 2 and "ctx 64 / 32" in err and err.count("\n") == 1
    assert qrun("eval", "compare", "done", "other:adapted", "--results", words[1])[0] == 2
    assert qrun("eval", "compare", "done", "nobody", "--results", words[1])[0] == 2


@pytest.mark.parametrize("content", ['{"statement": {}}', '{"nats": [], "tokens": [], "bytes": [], "words": []}'])
def test_a_broken_file_of_a_perplexity_is_one_line(qrun, tmp_path, content):
    filled = {"nats": [], "tokens": [], "bytes": [], "words": [], "statement": {}} | json.loads(content)
    (tmp_path / "a.json").write_text(json.dumps(filled))
    code, _, err = qrun("eval", "compare", tmp_path / "a.json", tmp_path / "a.json", "--results", tmp_path)
    assert code == 2 and "not a recorded perplexity" in err and err.count("\n") == 1


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_exports_give_the_adapted_perplexity(qrun, words, trained, tmp_path, kind):
    folder, store = trained
    model = [w for w in words[0] if w.startswith("model")]
    code, _, err = qrun("export", folder, "--to", kind, "--out", tmp_path / "out", *model)
    assert code == 0, err
    adapted = store.find("done").data.metrics["adapted/perplexity"]
    if kind == "merged":
        measured = [
            w if not w.startswith("model.path") else f"model.path={tmp_path / 'out'}"
            for w in perplexity_words(words[0])
        ]
        assert qrun("eval", "perplexity", *measured, "name=merged")[0] == 0
        assert store.find("merged").data.metrics["base/perplexity"] == pytest.approx(adapted, rel=1e-5)
    else:
        files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "qrun.json"]
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    code, _, err = qrun("export", folder, "--to", kind, "--out", tmp_path / "out", *model)
    assert code == 2 and "exists already" in err


def test_an_adapter_cut_to_circuits_is_saved_measured_and_close(qrun, words, trained, tmp_path):
    folder, store = trained
    model = [w for w in words[0] if w.startswith("model")]
    code, out, err = qrun("export", folder, "--to", "circuit", "--czs", 2, "--out", tmp_path / "cut", *model)
    assert code == 0 and "circuits miss the blocks by 0.0%" in out, err  # two CZ write every block of b = 4
    measured = [*perplexity_words(words[0]), f"adapter.path={tmp_path / 'cut'}"]
    assert qrun("eval", "perplexity", *measured, "name=cut")[0] == 0
    adapted = store.find("done").data.metrics["adapted/perplexity"]
    assert store.find("cut").data.metrics["adapted/perplexity"] == pytest.approx(adapted, rel=1e-5)
    facts = [json.loads((place / "qrun.json").read_text())["facts"] for place in (folder, tmp_path / "cut")]
    assert facts[1].items() >= facts[0].items() and facts[1]["cut to CZ a block"] == 2  # its text too
    code, _, err = qrun("export", folder, "--to", "circuit", "--czs", 3, "--out", tmp_path / "odd", *model)
    assert code == 2 and "give an even number" in err


LONG = ["training.steps=60", "training.lr=0.02"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The adapter of a run that nothing stopped."""
    from qrun.config.compose import compose
    from qrun.recipes.train import train

    typed = [w if not w.startswith("results") else f"results={tmp_path_factory.mktemp('whole')}" for w in words[0]]
    return load_file(train(compose("train", [*typed, *LONG, "name=whole"])) / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("signum", "code", "status"),
    [
        pytest.param(signal.SIGTERM, 143, "KILLED", marks=pytest.mark.long),
        pytest.param(signal.SIGINT, 130, "KILLED", marks=pytest.mark.long),
        (signal.SIGKILL, -9, "RUNNING"),
    ],
    ids=["SIGTERM", "SIGINT", "SIGKILL"],
)
def test_a_run_that_is_stopped_resumes_to_the_very_same_adapter(
    start, words, whole, qrun, tmp_path, signum, code, status
):
    typed = [w if not w.startswith("results") else f"results={tmp_path}" for w in words[0]] + LONG
    process = start("train", *typed, "name=stopped")
    until((tmp_path / "runs" / "stopped" / "checkpoint.safetensors").exists, process)
    process.send_signal(signum)
    assert process.wait(PATIENCE) == code, process.told()
    store = Store(tmp_path)
    run = store.find("stopped")
    assert run.info.status == status
    exit_code, out, err = qrun("train", *typed, "name=stopped", "--resume")
    assert exit_code == 0 and "resuming stopped at step" in out, err
    finished = store.find("stopped")
    assert finished.info.run_id == run.info.run_id and finished.info.status == "FINISHED"
    logged = [m.step for m in store.client.get_metric_history(run.info.run_id, "train/loss")]
    assert logged[-1] == 60 and set(logged) == set(range(1, 61))
    ours = load_file(tmp_path / "runs" / "stopped" / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == whole.keys() and all(torch.equal(ours[name], whole[name]) for name in whole)


def test_resuming_under_changed_circumstances_is_refused(words, qrun, tmp_path, monkeypatch):
    from qrun.training import loop

    typed = [w if not w.startswith("results") else f"results={tmp_path}/r" for w in words[0]] + LONG
    step = loop.optimizer_step

    def stopped(*words):
        if words[5] == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(*words)

    monkeypatch.setattr(loop, "optimizer_step", stopped)
    assert qrun("train", *typed, "name=stopped")[0] == 143
    monkeypatch.undo()
    assert (tmp_path / "r" / "runs" / "stopped" / "checkpoint.safetensors").exists()
    code, _, err = qrun("train", *typed, "name=stopped", "--resume", "training.lr=0.03")
    assert code == 2 and "another config_hash" in err
    stopped = Store(tmp_path / "r").find("stopped").info
    code, out, _ = qrun("train", *typed, "name=stopped", "training.steps=2")
    assert code == 0 and "starting over" in out
    again = Store(tmp_path / "r").find("stopped").info
    assert (stopped.status, again.status) == ("KILLED", "FINISHED") and again.run_id != stopped.run_id


def test_a_signal_in_the_last_step_ends_the_command_with_its_code(words, qrun, tmp_path, monkeypatch):
    from qrun.training import loop

    typed = [w if not w.startswith("results") else f"results={tmp_path}/r" for w in words[0]]
    step = loop.optimizer_step

    def stopped(*given):
        if given[5] == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(loop, "optimizer_step", stopped)
    assert qrun("train", *typed, "training.steps=2", "name=late")[0] == 143
    monkeypatch.undo()
    assert Store(tmp_path / "r").find("late").info.status == "KILLED"
    code, out, err = qrun("train", *typed, "training.steps=2", "name=late", "--resume")
    assert code == 0 and "resuming late at step 2 of 2" in out, err


def test_a_diverging_run_is_failed_in_the_store_and_ends_with_code_1(words, qrun):
    code, _, err = qrun(
        "train",
        *words[0],
        "training.steps=30",
        "training.lr=50",
        "training.clip=0",
        "training.divergence=0.00001",
        "name=diverged",
    )
    run = Store(words[1]).find("diverged")
    assert (
        code == 1
        and "lower training.lr" in err
        and run.info.status == "FAILED"
        and "diverged" in run.data.tags["error"]
    )


BAD = {
    "a block dimension that does not divide": (["adapter.dim=5"], "does not divide the input width 32"),
    "a layer out of range": (["adapter.layers=7"], "layers 0-1"),
    "a window beyond the positions": (["protocol.ctx=4096"], "128 positions"),
    "a training window beyond the positions": (["training.context=4096"], "128 positions"),
    "a stride beyond the window": (["protocol=hf_strided", "protocol.ctx=32", "protocol.stride=33"], "must not exceed"),
    "a missing model": (["model.path=/nowhere"], "no such folder"),
    "a missing text": (["data.path=/nowhere.txt"], "No such file"),
    "an unknown device": (["model.device=tpu"], "use auto, cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_code_2_and_nothing_in_the_store(words, qrun, tmp_path, case):
    more, said = BAD[case]
    typed = [w for w in words[0] if not w.startswith("results")]
    code, _, err = qrun("train", *typed, *more, f"results={tmp_path / 'results'}")
    assert code == 2 and said in err and err.count("\n") == 1, err
    assert not (tmp_path / "results").exists()


def test_an_adapter_of_another_model_is_refused(qrun, trained, tmp_path):
    code, _, err = qrun(
        "eval",
        "perplexity",
        "evaluation.max_tokens=600",
        f"adapter.path={trained[0]}",
        f"results={tmp_path / 'results'}",
    )
    assert (
        code == 2 and "trained in local" in err and "not in model=nano" in err and not (tmp_path / "results").exists()
    )
    code, _, err = qrun("eval", "perplexity", f"adapter.path={tmp_path}", f"results={tmp_path / 'results'}")
    assert code == 2 and "no qrun.json and no adapter_config.json" in err


def test_a_store_that_cannot_be_written_is_told_before_training(words, qrun, tmp_path):
    (tmp_path / "file").write_text("")
    typed = [w for w in words[0] if not w.startswith("results")]
    code, _, err = qrun("train", *typed, f"results={tmp_path}/file/results")
    assert code == 2 and "is no folder that can be written" in err


def test_ui_needs_a_store_and_a_free_port(qrun, tmp_path, trained):

    code, _, err = qrun("ui", "--results", tmp_path)
    assert code == 2 and "no store at" in err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = qrun("ui", "--results", trained[1].folder, "--port", taken.getsockname()[1])
    assert code == 2 and "not free" in err


@pytest.mark.data
@pytest.mark.long
def test_one_training_step_at_smollm2s_true_shape_with_its_real_tokenizer(shared, qrun, tmp_path):
    import shutil

    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path / "smollm2"
    shutil.copytree(shared / "smollm2-135m-tokenizer", folder)
    os.chmod(folder, 0o755)
    torch.manual_seed(0)
    LlamaForCausalLM(AutoConfig.from_pretrained(folder)).to(torch.bfloat16).save_pretrained(tmp_path / "weights")
    shutil.copy(tmp_path / "weights" / "model.safetensors", folder / "model.safetensors")
    measured = ["protocol.ctx=128", "evaluation.max_tokens=512"]
    step = [
        "training.steps=1",
        "training.batch=1",
        "training.context=128",
        "training.eval_tokens=256",
        "training.warmup=0",
    ]
    source = [
        f"model.path={folder}",
        "model.dtype=bfloat16",
        "data=wikitext2",
        f"data.path={shared / 'wikitext-2-raw'}",
    ]
    code, out, err = qrun("train", "model=smollm2", *source, *measured, *step, f"results={tmp_path / 'r'}")
    assert code == 0, err
    assert "134,515,008 parameters" in out and "210 sites, 224,640 parameters" in out


def test_a_name_is_its_first_configs(words, qrun, tmp_path):
    typed = [w for w in words[0] if not w.startswith("results")] + [f"results={tmp_path / 'r'}", "name=mine"]
    typed.append("training.steps=1")
    assert qrun("train", *typed)[0] == 0
    before = (tmp_path / "r" / "runs" / "mine" / "adapter" / "adapter_model.safetensors").read_bytes()
    code, _, err = qrun("train", *typed, "seed=7")
    assert code == 2 and err.startswith("qrun: name=mine: ") and err.count("\n") == 1
    assert (tmp_path / "r" / "runs" / "mine" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    from filelock import FileLock

    with FileLock(tmp_path / "r" / "runs" / ".mine.lock"):
        code, _, err = qrun("train", *typed)
    assert code == 2 and "another process is training it" in err
    assert [run.name for run in Store(tmp_path / "r").runs()["train"]] == ["mine"]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal hangs up here")
def test_a_closed_terminal_ends_training_resumably_and_the_ui_with_its_server(words, qrun, tmp_path, start):
    import psutil

    typed = [w for w in words[0] if not w.startswith(("results", "training.steps"))]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup the command would rightly ignore it
    try:
        process = start("train", *typed, f"results={tmp_path / 'r'}", "name=hung", "training.steps=100000")
    finally:
        signal.signal(signal.SIGHUP, before)
    until((tmp_path / "r" / "runs" / "hung" / "checkpoint.safetensors").exists, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE) == 143 and Store(tmp_path / "r").find("hung").info.status == "KILLED"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start("ui", "--results", tmp_path / "r", "--port", port)
    until(lambda: "Ctrl-C" in process.told(), process)
    server = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert len(server) > 1 and not psutil.wait_procs(server, PATIENCE)[1]
