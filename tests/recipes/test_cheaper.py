"""What makes runs cheaper changes no number, and what does change one is told."""

import pytest

from qrun.tracking.store import Store

WORDS = ["model=local", "data=text", "protocol.ctx=48", "evaluation.max_tokens=600", "evaluation.resamples=99"]


@pytest.fixture
def words(tiny_folder, story_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return [*WORDS, f"model.path={tiny_folder}", f"data.path={story_file}", f"results={tmp_path / 'results'}"]


@pytest.mark.slow
def test_a_training_with_kept_states_is_the_one_without_bit_for_bit(qrun, words, tmp_path):
    more = ["training.steps=4", "training.context=32", "training.eval_tokens=400", "training.eval_every=2",
            "training.batch=2", "training.lr=0.05", "adapter.layers=last"]  # fmt: skip
    adapters, numbers = [], []
    for name, gib in (("without", 0), ("first", 1), ("again", 1)):
        code, out, err = qrun("train", *words, *more, f"cache.gib={gib}", f"name={name}")
        assert code == 0, err
        assert ("hidden states below layer 1" in out) == bool(gib)
        adapters.append((tmp_path / "results/runs" / name / "adapter/adapter_model.safetensors").read_bytes())
        numbers.append(Store(str(tmp_path / "results")).find(name).data.metrics["adapted/perplexity"])
    assert adapters[0] == adapters[1] == adapters[2] and numbers[0] == numbers[1] == numbers[2]
    assert len(list((tmp_path / "cache/qrun/trunks").iterdir())) == 3, "of training, validation and test windows"


def test_the_effect_of_the_weights_type_is_told_and_recorded(qrun, words, tmp_path):
    code, out, err = qrun("eval", "perplexity", *words, "model.dtype=bfloat16", "name=half")
    assert code == 0, err
    found = Store(str(tmp_path / "results")).find("half").data.metrics
    gap = found["dtype/perplexity"] - found["dtype/float32_perplexity"]
    assert f"changes the frozen model's perplexity by {gap:+.4f}" in out
    assert 0 < abs(gap) < 0.01 * found["dtype/float32_perplexity"]
