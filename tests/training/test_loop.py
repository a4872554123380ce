import itertools
import json
import signal
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qrun.adapters.linear import attach
from qrun.adapters.sites import sites
from qrun.config.schema import AdapterConfig, ModelConfig, TrainingConfig
from qrun.errors import InputError, Interrupted, NotFinite, RunFailed
from qrun.evaluation import perplexity
from qrun.language.models import load
from qrun.training import checkpoint, loop
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt
from qrun.training.losses import Teacher, frozen_teacher, window_loss

WINDOWS = torch.randint(0, 300, (12, 33), generator=torch.Generator().manual_seed(5))


def config(**changes):
    return TrainingConfig(
        **{"steps": 6, "batch": 2, "context": 33, "warmup": 2, "eval_every": 2, "checkpoint_every": 2, "lr": 0.05}
        | changes
    )


def load_tiny(folder):
    return load(ModelConfig(name="tiny", path=str(folder)))


def fit(
    language, path, config, progress=None, on_step=lambda p: None, interrupt=None, validate=None, teacher=None, seed=3
):
    adapter = attach(language.model, sites(language.shape), AdapterConfig(dim=4))
    validate = validate or (lambda: window_loss(language.model, WINDOWS[:2], None, 0, 1)[1])
    best, progress = loop.fit(
        language.model, adapter, WINDOWS, validate, config, seed, teacher, path,
        progress or Progress(), on_step, interrupt or Interrupt()
    )  # fmt: skip
    return adapter, best, progress


@given(windows=st.integers(1, 30), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_epoch_visits_every_window_once_in_a_new_order(windows, size, seed):
    batches = 3 * windows
    rows = torch.cat([loop.batch_rows(windows, size, index, seed) for index in range(batches)])
    for epoch in rows[: len(rows) // windows * windows].view(-1, windows):
        assert sorted(epoch.tolist()) == list(range(windows))


def test_orders_differ_between_seeds_and_epochs():
    orders = [loop.batch_rows(50, 50, index, seed).tolist() for index, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_learning_rate_warms_up_and_ends_at_its_share():
    c = config(steps=100, warmup=10, lr=1.0, final_lr=0.1)
    rates = [loop.learning_rate(c, step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def curve(*nats, every=10):
    return [{"step": every * at, "validation_nats": value} for at, value in enumerate(nats)]


PATIENT = {"steps": 120, "warmup": 5, "patience": 20, "min_gain": 0.01, "decay": 0.25, "eval_every": 10}


@pytest.mark.parametrize(
    ("nats", "expected", "cap"),
    [
        ((3.0, 2.9, 2.8, 2.795, 2.799), (40, 50), False),  # flat since step 20
        ((3.0, 2.995, 2.991, 2.9), (20, 25), False),  # less than min_gain in all of the first 20 steps
        ((3.0, 2.9, 2.895, 2.889, 2.88, 2.875, 2.87, 2.87), (70, 88), False),  # small gains add up while patience lasts
        ((3.0, 2.9, 2.8), (96, 120), True),  # not flat so far
        (tuple(3 - 0.1 * at for at in range(12)), (96, 120), True),  # never flat
        ((*(3 - 0.1 * at for at in range(10)), 2.1, 2.1, 2.1), (96, 120), True),  # flat only while the rate falls
    ],
)
def test_the_rate_falls_once_validation_is_flat_and_at_the_cap_at_the_latest(nats, expected, cap):
    c = config(**PATIENT)
    assert loop.decline(c, curve(*nats)) == expected
    assert loop.at_cap(c, curve(*nats)) is cap


def test_without_patience_no_training_ends_at_a_cap():
    assert not loop.at_cap(config(steps=20), curve(3, 2, 1))
    assert loop.decline(config(steps=20), curve(3, 3, 3)) == (2, 20)


@given(begin=st.integers(1, 12), final=st.floats(0, 1))
def test_the_rate_is_constant_and_then_a_line_to_its_share_at_the_last_step(begin, final):
    c, flat = config(**PATIENT, lr=2.0, final_lr=final), curve(*[3 - 0.1 * at for at in range(begin)], *[9] * 3)
    first, end = loop.decline(c, flat)
    rates = [loop.learning_rate(c, step, flat) for step in range(end)]
    assert rates[5:first] == [2.0] * (first - 5) and rates[-1] == pytest.approx(2 * final)
    falls = [a - b for a, b in itertools.pairwise(rates[first - 1 :])]
    assert falls == pytest.approx([2 * (1 - final) / (end - first)] * len(falls))


def test_a_training_that_is_flat_ends_before_its_cap(tiny, tmp_path):
    scores = iter([5.0, 4.0, 3.99, 4.01, 3.98, 3.97])
    changes = {"steps": 60, "patience": 4, "min_gain": 0.1, "decay": 0.5, "final_lr": 0.0}
    _, _, progress = fit(tiny, tmp_path / "c.safetensors", config(**changes), validate=lambda: next(scores))
    assert (progress.step, progress.best_step, progress.best_nats) == (9, 9, 3.97)
    assert [row["lr"] for row in progress.history[5:]] == pytest.approx([0.05, 0.05 * 2 / 3, 0.05 / 3, 0])


def test_without_a_decay_a_training_ends_where_it_is_flat(tiny, tmp_path):
    scores = iter([5.0, 4.0, 3.99, 4.01])
    changes = {"steps": 60, "patience": 4, "min_gain": 0.1, "decay": 0.0, "checkpoint_every": 20}
    _, _, progress = fit(tiny, tmp_path / "c.safetensors", c := config(**changes), validate=lambda: next(scores))
    assert (progress.step, progress.best_step) == (6, 4) and not loop.at_cap(c, progress.evaluations)
    assert checkpoint.read_progress(tmp_path / "c.safetensors").step == 6  # whatever checkpoint_every says
    assert {row["lr"] for row in progress.history[c.warmup :]} == {c.lr}


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0, 0.99))
def test_the_running_mean_is_a_weighted_sum_of_what_it_met_and_of_the_start(values, decay):
    own = torch.zeros(1, dtype=torch.float64)
    mean, shares = loop.Mean([own], decay), []
    for step, value in enumerate(values, start=1):
        own.fill_(value)
        mean.update(step)
        keep = min(decay, (1 + step) / (10 + step))
        shares = [share * keep for share in shares] + [1 - keep]
    assert mean.values[0].item() == pytest.approx(sum(s * v for s, v in zip(shares, values, strict=True)), abs=1e-12)
    with mean.in_place():
        assert own.item() == mean.values[0].item()
    assert own.item() == values[-1] and (decay or mean.values[0].item() == values[-1])


def test_the_running_mean_is_what_is_validated_and_kept(tiny, tmp_path):
    seen = []

    def validate():
        own = {name: m.trained for name, m in tiny.model.named_modules() if hasattr(m, "trained")}
        seen.append({name.removeprefix("model."): p.detach().clone() for name, p in own.items()})
        return 5.0 - len(seen)

    adapter, best, progress = fit(tiny, tmp_path / "c.safetensors", config(average=0.9), validate=validate)
    assert all(torch.equal(best[name], seen[-1][name]) for name in best) and progress.best_step == progress.step
    assert not any(torch.equal(best[name], parameter) for name, parameter in adapter.tensors().items())


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_frozen_weights(tiny, tmp_path):
    frozen = {n: p.clone() for n, p in tiny.model.named_parameters()}
    adapter, best, progress = fit(tiny, tmp_path / "c.safetensors", config(steps=20))
    assert progress.best_nats < progress.evaluations[0]["validation_nats"] - 0.005
    assert all(
        torch.equal(module.base.weight, frozen[f"model.{name}.weight"]) for name, module in adapter.modules.items()
    )
    assert set(best) == set(adapter.modules) and progress.best_step > 0


def test_best_parameters_are_those_of_the_best_validation(tiny, tmp_path):
    scores = iter([5.0, 4.0, 4.5, 4.2])
    adapter, best, progress = fit(tiny, tmp_path / "c.safetensors", config(), validate=lambda: next(scores))
    assert (progress.best_step, progress.best_nats) == (2, 4.0)
    assert not torch.equal(best["layers.0.self_attn.q_proj"], adapter.tensors()["layers.0.self_attn.q_proj"])


def test_accumulation_equals_a_larger_batch(tiny_folder, tmp_path):
    results = []
    for changes in ({"batch": 4}, {"batch": 2, "accumulation": 2}):
        language = load_tiny(tiny_folder)
        adapter, _, _ = fit(language, tmp_path / "c.safetensors", config(steps=3, **changes))
        results.append(adapter.snapshot())
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=2e-4, rtol=1e-2)


SHORT = {"steps": 60, "patience": 2, "min_gain": 1.0}  # ends at step 4


@pytest.mark.parametrize("changes", [{}, {**SHORT, "decay": 1.0}, {**SHORT, "patience": 4, "decay": 0, "average": 0.9}])
def test_an_interrupted_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tiny_folder, tmp_path, changes):
    def fresh():
        return load_tiny(tiny_folder)

    _, best, whole = fit(fresh(), tmp_path / "whole.safetensors", config(**changes))
    interrupt, path = Interrupt(), tmp_path / "part.safetensors"

    def stop_at_three(progress):
        if progress.step == 3:
            interrupt.handle(signal.SIGTERM, None)

    with pytest.raises(Interrupted, match="step 3"):
        fit(fresh(), path, config(**changes), on_step=stop_at_three, interrupt=interrupt)
    assert checkpoint.read_progress(path).step == 3
    begun = checkpoint.read_progress(path)
    begun.facts = {"run_id": "the one that goes on"}
    _, resumed_best, resumed = fit(fresh(), path, config(**changes), progress=begun)
    assert resumed.facts == begun.facts == checkpoint.read_progress(path).facts
    assert all(torch.equal(best[n], resumed_best[n]) for n in best)
    assert [r["loss"] for r in whole.history] == [r["loss"] for r in resumed.history]
    assert whole.evaluations == resumed.evaluations
    assert [r["lr"] for r in whole.history] == [r["lr"] for r in resumed.history]
    assert whole.step == (4 if changes else 6)


def test_a_checkpoint_that_is_not_whole_is_refused_by_name(tiny_folder, tmp_path):
    path, other = tmp_path / "c.safetensors", tmp_path / "other.safetensors"
    _, _, progress = fit(language := load_tiny(tiny_folder), path, config(steps=2))
    tensors, scalars = load_file(path), asdict(progress)
    name = next(name for name in tensors if name.startswith("exp_avg_sq/"))

    def told(changes, **facts):
        kept = {key: value for key, value in {**tensors, **changes}.items() if value is not None}
        save_file(kept, other, metadata={"progress": json.dumps({**scalars, **facts})})
        adapter = attach(load_tiny(tiny_folder).model, sites(language.shape), AdapterConfig(dim=4))
        with pytest.raises(InputError, match=rf"^{other}: ") as stop:
            checkpoint.restore(other, adapter, torch.optim.AdamW(list(adapter.tensors().values())))
        assert not any(value.any() for value in adapter.tensors().values())  # nothing of it was loaded
        return str(stop.value)

    assert f"{name}: nothing there, F32 [" in told({name: None})
    assert f"{name}: F32 [6] there" in told({name: torch.zeros(6)})
    assert f"{name}: F16 [" in told({name: tensors[name].half()})
    assert "step='2'" in told({}, step="2") and "history.0.loss='x'" in told({}, history=[{"loss": "x"}] * 2)
    assert "its history is not that of step 3" in told({}, step=3)
    assert "its history" in told({}, evaluations=[]) and "best_nats=None" in told({}, best_nats=None)


def test_a_loss_that_runs_away_stops_with_a_word_about_the_learning_rate(tiny, tmp_path):
    with pytest.raises(RunFailed, match=r"diverged; lower training.lr"):
        fit(tiny, tmp_path / "c.safetensors", config(steps=30, divergence=0.0001, lr=5.0, clip=0.0))


def test_a_loss_that_is_not_finite_stops_and_is_named(tiny, tmp_path):
    tiny.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RunFailed, match="loss became nan at step 1"):
        fit(tiny, tmp_path / "d.safetensors", config(), validate=lambda: 1.0)
    history = [{"loss": 2.5, "gradient_norm": float("inf")}]
    with pytest.raises(RunFailed, match="gradient norm became inf at step 1"):
        loop._check(2.5, Progress(1, history=history), config())


def test_an_update_that_ruins_the_parameters_is_a_divergence_when_validation_meets_it(tiny, tmp_path):
    looks = iter([1.0, NotFinite("no numbers")])

    def validate():
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(loop.Diverged, match=r"at step 2 no numbers; lower training.lr \(now 0.05\)"):
        fit(tiny, tmp_path / "e.safetensors", config(), validate=validate)


def test_seconds_are_those_of_the_steps_and_not_of_validation(tiny, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    step = loop.optimizer_step

    def slow(*words):
        clock[0] += 1
        return step(*words)

    def validate():
        clock[0] += 100
        return 1.0

    monkeypatch.setattr(loop, "optimizer_step", slow)
    assert fit(tiny, tmp_path / "f.safetensors", config(), validate=validate)[2].seconds == 6


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(InputError, match="only 10 tokens"):
        loop.training_windows(torch.arange(10), 11)
    assert loop.training_windows(torch.arange(25), 10).tolist() == [list(range(10)), list(range(10, 20))]


def test_loss_in_pieces_equals_loss_at_once(tiny, monkeypatch):
    adapter = attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4))
    gradients = []
    for rows in (1000, 10):
        monkeypatch.setattr(perplexity, "piece", lambda _, rows=rows: rows)
        loss, ce = window_loss(tiny.model, WINDOWS[:3], frozen_teacher(tiny.model, adapter), 0.5, 2.0)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.tensors().values()]))
        for parameter in adapter.tensors().values():
            parameter.grad = None
        assert ce == pytest.approx(8.3, abs=0.3)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_loss_in_pieces_has_the_value_and_gradient_of_the_plain_one(tiny, monkeypatch, share):
    monkeypatch.setattr(perplexity, "piece", lambda _: 10)
    adapter = attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4))
    for parameter in adapter.tensors().values():
        parameter.data.normal_(0, 0.3)
    targets, found = WINDOWS[:3, 1:].flatten(), []
    teacher = frozen_teacher(tiny.model, adapter) if share else None
    loss, _ = window_loss(tiny.model, WINDOWS[:3], teacher, share, 2.0)
    student = tiny.model(input_ids=WINDOWS[:3, :-1]).logits.flatten(0, 1)
    with adapter.disabled(), torch.no_grad():
        reference = (tiny.model(input_ids=WINDOWS[:3, :-1]).logits.flatten(0, 1) / 2).softmax(-1)
    soft = 4 * (reference * (reference.log() - (student / 2).log_softmax(-1))).sum(-1).mean()
    plain = (1 - share) * torch.nn.functional.cross_entropy(student, targets) + share * soft
    for value in (loss, plain):
        value.backward()
        found.append(torch.cat([p.grad.flatten() for p in adapter.tensors().values()]))
        tiny.model.zero_grad()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert (found[0] - found[1]).norm() < 1e-6 * found[1].norm()


def test_no_table_of_tokens_and_vocabulary_is_kept_for_the_backward_pass(tiny, monkeypatch):
    monkeypatch.setattr(perplexity, "piece", lambda _: 10)
    attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        window_loss(tiny.model, WINDOWS[:3], None, 0, 1)[0].backward()
    assert 0 < max(kept) <= 4096 * 32, "the largest is the head's weight, in one piece's own graph"


def test_layers_that_compute_twice_give_the_same_training_from_less_memory(tiny_folder, tmp_path):
    histories, sizes = [], []
    for switch in (False, True):
        language, kept = load_tiny(tiny_folder), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.numel()), t)[1], lambda t: t):
            _, _, progress = fit(
                language, tmp_path / "c.safetensors", config(gradient_checkpointing=switch), validate=lambda: 1.0
            )
        histories.append(progress.history)
        sizes.append(sum(kept))
        assert not any(m.training for layer in language.model.model.layers for m in (layer, layer.self_attn))
    assert histories[0] == histories[1] and sizes[1] < 0.9 * sizes[0]


def test_distillation_from_itself_is_zero_and_its_formula_is_hintons(tiny):
    adapter = attach(tiny.model, sites(tiny.shape), AdapterConfig(dim=4))
    itself = frozen_teacher(tiny.model, adapter)
    assert window_loss(tiny.model, WINDOWS[:2], itself, 1.0, 2.0)[0].item() == pytest.approx(0, abs=1e-5)
    for parameter in adapter.tensors().values():
        parameter.data.normal_(0, 0.3)
    total, ce = window_loss(tiny.model, WINDOWS[:2], itself, 0.3, 2.0)
    with torch.no_grad():
        student = tiny.model(input_ids=WINDOWS[:2, :-1]).logits
        with adapter.disabled():
            teacher = tiny.model(input_ids=WINDOWS[:2, :-1]).logits
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    assert total.item() == pytest.approx((0.7 * ce + 0.3 * 4 * kl).item(), rel=1e-4)
    assert isinstance(itself, Teacher) and kl > 1e-5


@pytest.mark.slow
def test_losses_of_a_fixed_run_stay_what_they_were(nano, tmp_path):
    """Golden values.

    Six steps on nano with fixed ids. A change here is a change of the mathematics, the defaults or the weights.
    """
    import copy

    from qrun.language.models import LanguageModel

    language = LanguageModel(copy.deepcopy(nano.model), nano.tokenizer, nano.identity, nano.shape)
    _, _, progress = fit(language, tmp_path / "c.safetensors", config(lr=0.01))
    assert [round(r["loss"], 4) for r in progress.history] == pytest.approx(GOLDEN, rel=1e-4)


GOLDEN = [11.9717, 11.918, 11.1048, 11.9621, 11.0167, 10.168]
