"""`qrun eval questions`: does the adapter answer what the baselines fail, and more often than chance?

qrun eval questions model=local model.path=<compressed> model@original=nano adapter.path=<adapter trained in it>
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrun.config.compose import config_hash, flatten, plain
from qrun.config.verbs import QuestionsRunConfig
from qrun.errors import InputError
from qrun.language.models import model_shape

SHOWN = 10  # question names listed on the screen; result.json has all


@dataclass(frozen=True)
class Arm:
    """One model that answered."""

    name: str
    answers: Any


def ask(config: QuestionsRunConfig) -> dict[str, Any]:
    """Let every arm answer, compare them in pairs, record; returns the numbers."""
    model_shape(config.model)
    if config.device.kind != "exact" and not config.adapter.path:
        raise InputError(
            f"device={config.device.kind}: no adapter to run there; give adapter.path=<folder written by `qrun train`>"
        )
    from qrun.adapters.saving import read
    from qrun.evaluation.questions import answer
    from qrun.language.questions import load
    from qrun.recipes.device import circuit_line, open_executor
    from qrun.recipes.record import Shelf, attach_saved, device_tags
    from qrun.report.screen import bar, say
    from qrun.studies.result import conclude
    from qrun.tracking.provenance import environment, git_state
    from qrun.tracking.store import Store
    from qrun.training.interrupt import Interrupt

    saved = read(Path(config.adapter.path).expanduser()) if config.adapter.path else None
    executor = (
        open_executor(config, saved.config.dim, config.readout.sign)
        if saved and config.device.kind != "exact"
        else None
    )
    asked = load(config.questions, config.seed)
    shelf, store = Shelf(), Store(config.results)
    store.check_writable()
    language = shelf.model(config.model)
    original = shelf.model(config.original) if config.original is not None else None
    say(f"questions {asked.name}: {len(asked.questions)} from {asked.source}, digest {asked.digest}")
    name = config.name or f"{config.model.name}-{asked.name}-{config.device.kind}-{config_hash(config)}"
    params = {k: v for k, v in flatten(plain(config)).items() if k not in ("results", "name")}
    tags = {
        **git_state(), "config_hash": config_hash(config), "model_weights": language.identity["weights"],
        "questions_digest": asked.digest,
        "questions_source": asked.source, **device_tags(config), "study_key": config_hash(config),
    }  # fmt: skip
    arms: list[Arm] = []

    def run_arm(label: str, chosen: Any) -> None:
        with bar(label, 4 * len(asked.questions), "choices") as advance:
            arms.append(
                Arm(
                    label,
                    answer(chosen.model, chosen.tokenizer, asked.questions, config.batch, lambda n: advance(n, "")),
                )
            )
            advance(0, f"{arms[-1].answers.correct.mean():.1%} right")

    with Interrupt().installed(), store.run("study", name, params, tags) as run:
        run.json(environment(), "env.json")
        if original is not None:
            run_arm("original", original)
        run_arm("compressed" if original is not None else "model", language)
        if saved is not None:
            adapter = attach_saved(language, saved, str(config.adapter.path))
            run_arm("adapter", language)
            if executor is not None:
                adapter.set_executor(executor)
                run_arm(f"adapter on {config.device.kind}", language)
                say(circuit_line(executor.statistics.summary(), config))
        values = compare(arms, config)
        run.metrics({f"{arm.name.replace(' ', '_')}/right": float(arm.answers.correct.mean()) for arm in arms})
        conclude(run, store, judge(config, asked, arms, values))
    return values


def compare(arms: list[Arm], config: QuestionsRunConfig) -> dict[str, Any]:
    """Shares with intervals, sampled answers by temperature, pairs of neighbouring arms, and the questions that
    both baselines fail."""
    from qrun.evaluation.questions import binomial_interval, both_fail, mcnemar

    shares: dict[str, Any] = {}
    for arm in arms:
        right, count = int(arm.answers.correct.sum()), len(arm.answers.right)
        sampled = {f"{t:g}": arm.answers.sampled(t, config.trials, config.seed) for t in config.temperatures}
        shares[arm.name] = {
            "right": right, "questions": count, "interval": binomial_interval(right, count),
            "chosen": arm.answers.chosen.tolist(),
            "sampled": {t: {"right": int(x.sum()), "trials": config.trials * count,
            "by_question": x.tolist()} for t, x in sampled.items()},
        }  # fmt: skip
    pairs = {
        f"{a.name} to {b.name}": mcnemar(a.answers.correct, b.answers.correct)
        for i, a in enumerate(arms)
        for b in arms[i + 1 :]
    }
    values: dict[str, Any] = {"shares": shares, "pairs": pairs}
    if len(arms) >= 3 and arms[0].name == "original":
        values["both_fail"] = {arm.name: both_fail(arms[0].answers, arms[1].answers, arm.answers) for arm in arms[2:]}
    return values


def judge(config: QuestionsRunConfig, asked: Any, arms: list[Arm], values: dict[str, Any]) -> Any:
    """Tables and the verdict on "questions that both classical baselines fail"."""
    from qrun.evaluation.questions import binomial_interval
    from qrun.studies.result import StudyResult, Table, Verdict

    rows = []
    for name, share in values["shares"].items():
        low, high = share["interval"]
        shown = f"{share['right'] / share['questions']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
        sampled = []
        for found in share["sampled"].values():
            a, b = binomial_interval(found["right"], found["trials"])
            sampled.append(f"{found['right'] / found['trials']:.1%} [{100 * a:.1f}, {100 * b:.1f}]")
        rows.append([name, f"{share['right']} of {share['questions']}", shown, *sampled])
    columns = ["", "right", "by likelihood", *(f"sampled, T = {t:g}" for t in config.temperatures)]
    caption = (
        f"{asked.source}; chance 25%; {config.trials} sampled answers per question; intervals exact "
        f"binomial (trials of one question are not independent)"
    )
    tables = [Table(f"{config.model.name}: {asked.name}, {len(asked.questions)} questions", columns, rows, caption)]
    names = [q.name.removeprefix(f"{asked.name} ") for q in asked.questions]

    def listed(found: list[int]) -> str:
        return f"{len(found)}" + (
            f" ({', '.join(names[k] for k in found[:SHOWN])}{', ...' if len(found) > SHOWN else ''})" if found else ""
        )

    pairs = [
        [name, listed(p["wrong_to_right"]), listed(p["right_to_wrong"]), f"{p['p']:.2g}"]
        for name, p in values["pairs"].items()
    ]
    if pairs:
        tables.append(Table("changed answers", ["", "wrong to right", "right to wrong", "McNemar p"], pairs))
    if any(q.reported for q in asked.questions):
        tables.append(paper_table(config, asked, arms, values))
    verdicts, negatives = [], []
    for name, found in values.get("both_fail", {}).items():
        ours = (
            f"{name}: both baselines fail {found['both_fail']} of {len(names)}, the adapter answers "
            f"{listed(found['answered'])}; expected "
            f"{found['flips']:.1f} if its changed answers fell at random, {found['guessing']:.1f} if it guessed "
            f"(p = {found['p']:.2g})"
        )
        pair = values["pairs"][f"{arms[1].name} to {name}"]
        word = "not reproduced" if not found["answered"] else "reproduced" if found["p"] < 0.05 else "in part"
        why = (
            "Such questions exist for any change of a model; only more than chance is evidence. In total "
            f"{len(pair['wrong_to_right'])} answers of the compressed model turned right and "
            f"{len(pair['right_to_wrong'])} wrong (McNemar p = {pair['p']:.2g})."
        )
        if word != "reproduced":
            negatives.append(
                f"{asked.name}, {name}: questions that both baselines fail are answered no more often than "
                f"chance (p = {found['p']:.2g})"
            )
        verdicts.append(Verdict("both_fail", ours, 1, "expected by chance; McNemar", word, why))
    return StudyResult(f"questions-{asked.name}", config.model.name, tables, values, verdicts, negatives)


def paper_table(config: QuestionsRunConfig, asked: Any, arms: list[Arm], values: dict[str, Any]) -> Any:
    """The paper's questions: what each arm answers, how often sampled, and what the paper reports."""
    from qrun.studies.result import Table

    rows = []
    for index, question in enumerate(asked.questions):
        for arm in arms:
            share = values["shares"][arm.name]
            shown = question.shown[share["chosen"][index]]
            sampled = [
                f"{share['sampled'][f'{t:g}']['by_question'][index]}/{config.trials}" for t in config.temperatures
            ]
            rows.append(
                [f"{question.text} ({arm.name})", shown, question.shown[question.answer], *sampled, question.reported]
            )
    return Table(
        "the paper's questions",
        ["", "answer", "right", *(f"T = {t:g}" for t in config.temperatures), "the paper"],
        rows,
    )
