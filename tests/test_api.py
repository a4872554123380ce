"""The five functions for notebooks give the numbers of the command line."""

import subprocess
import sys

import pytest
import torch

import qrun as api
from qrun.errors import InputError
from qrun.tracking.store import Store

SMALL = {"evaluation.max_tokens": 600, "evaluation.resamples": 99, "protocol.ctx": 64}
STEPS = {
    "training.steps": 3, "training.context": 64, "training.batch": 2, "training.warmup": 1, "training.eval_tokens": 600,
    "training.threads": 1,
}  # fmt: skip
CHECKED = ("protocol_fingerprint", "model_weights", "data_digest", "config_hash")


def typed(*settings):
    return [f"{key}={value}" for own in settings for key, value in own.items()]


def numbers(run):
    """Metrics but for those of clock and machine."""
    return {k: v for k, v in run.data.metrics.items() if not any(w in k for w in ("second", "memory", "system/"))}


def test_importing_qrun_loads_none_of_it():
    code = (
        "import sys, qrun; assert 'train' in dir(qrun); heavy = {'torch', 'numpy', 'hydra', 'qrun.api'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = api.nothing


@pytest.mark.slow
def test_training_and_evaluating_give_the_numbers_of_the_commands(qrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = {"adapter.dim": 8, "adapter.projections": "[v_proj]"}
    code, _, err = qrun("train", *typed(adapter, STEPS, SMALL), "results=ours", "name=a")
    assert code == 0, err
    device = ["device=noisy", "noise=heron_r2", "device.shots=256", "adapter.path=ours/runs/a/adapter"]
    code, _, err = qrun("eval", "perplexity", *device, *typed(SMALL), "results=ours", "name=b")
    assert code == 0, err

    model = api.attach(api.load_model("nano"), dim=8, projections=["v_proj"])
    assert (model.parameters, len(model.sites)) == (6 * 24 * 28, 6)
    keys = {key.partition(".")[2]: value for key, value in STEPS.items()}
    measured = {"evaluation": {"max_tokens": 600, "resamples": 99}, "protocol": {"ctx": 64}}
    trained = api.train(model, **keys, **measured, results="theirs", name="a")
    found = api.evaluate(model, "seed=0", device="noisy", noise="heron_r2", shots=256, **measured, results="theirs",
                         name="b")  # fmt: skip

    ours, theirs = Store("ours"), Store("theirs")
    for name in "ab":
        one, other = ours.find(name), theirs.find(name)
        assert numbers(one) == numbers(other) and len(numbers(one)) > 10
        skipped = CHECKED[:-1] if name == "b" else CHECKED  # b's hash has the adapter's path in it
        assert [one.data.tags[tag] for tag in skipped] == [other.data.tags[tag] for tag in skipped]
    metrics = theirs.find("a").data.metrics
    assert trained.gain.value == metrics["gain"] and trained.adapted.perplexity == metrics["adapted/perplexity"]
    assert found.perplexity["noisy"] == theirs.find("b").data.metrics["noisy/perplexity"]
    assert found.penalty.value == found.perplexity["noisy"] - found.perplexity["adapted"]
    assert theirs.find("b").data.params["adapter.path"] == str(trained.folder)

    table = api.results("theirs")
    assert table[["verb", "run", "status"]].values.tolist() == [
        ["eval-perplexity", "b", "FINISHED"], ["train", "a", "FINISHED"]
    ]  # fmt: skip
    assert table["gain"].tolist() == [found.gain.value, metrics["gain"]]
    assert table["device.shots"].iloc[0] == 256 and table["adapter.dim"].tolist() == [8, 8]


def test_a_model_takes_one_adapter_after_another_and_is_itself_again(tiny_folder, story_file, tmp_path):
    model = api.load_model(path=tiny_folder)
    ids = torch.arange(12)[None]
    before = model.model(ids).logits
    api.attach(model, "lora", rank=2)
    with pytest.raises(InputError, match="does not divide"):
        api.attach(model, dim=7)
    assert model.adapter.config.method == "lora"  # what does not fit leaves the old one alone
    api.attach(model, "cayley", "adapter.side=output", dim=4, layers="last")
    assert model.adapter.config.side.value == "output" and len(model.sites) == 7
    torch.nn.init.normal_(next(iter(model.adapter.tensors().values())))
    assert not torch.equal(model.model(ids).logits, before) and model.saved() is None
    model.detach()
    assert torch.equal(model.model(ids).logits, before) and model.parameters == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: api.train(model), "the model has no adapter"),
        (lambda model: api.evaluate(model, device="noisy"), "device=noisy: no adapter"),
        (lambda model: api.evaluate(model, "model=llama"), "load_model says which model"),
        (lambda model: api.train(api.attach(model, dim=2), "adapter.dim=4"), "attach which adapter"),
        (lambda model: api.train(api.attach(model, dim=2), stepz=4), "training.stepz"),
        (lambda model: api.train(api.attach(model, dim=2), data="nothing"), "data=nothing: no such option"),
        (lambda model: api.attach(model, "nothing"), "adapter=nothing: no such option"),
        (lambda model: api.attach(model, path="x", dim=2), "give path alone"),
        (lambda model: api.results("/nowhere/results"), "no store there"),
    ],
)
def test_wrong_words_end_in_one_line(tiny_folder, call, said):
    model = api.load_model(path=tiny_folder)
    with pytest.raises(InputError) as caught:
        call(model)
    assert said in str(caught.value) and "\n" not in str(caught.value)
