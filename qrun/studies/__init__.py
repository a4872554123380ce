"""The studies: each module declares its axes, the grid of its cells, the numbers made of its table, and its grades."""

from importlib import import_module

STUDIES = {  # name of module and template -> verbs before it, what it says of itself, example (\[ is help's [); light
    "dim": (
        "sweep", "Perplexity over block dimension, seeds and sites, noiseless; LoRA beside it, monotonicity graded.",
        "qrun sweep dim study.dims=[2,4,8] study.seeds=[0,1,2]",
    ),
    "controls": (
        "sweep", "Other trained matrices at the adapter's sites, OFT and LoRA among them; untrained nulls.",
        "qrun sweep controls study.dims=[4,8]",
    ),
    "noise": (
        "sweep", "Perplexity over block dimension and error rates; where does the gain end, how sharply, and why?",
        r"qrun sweep noise noise=heron_r2 study.sites=\[one]",
    ),
    "wall": (
        "sweep", "Circuit, estimate and signs on noisy devices: how much of the gain is left, and whose the wall is.",
        "qrun sweep wall study.dims=[8] study.noises=[FakeFez]",
    ),
    "sites": (
        "sweep", "Gain and penalty by the number of adapted sites: at how many does the device eat the gain?",
        "qrun sweep sites study.counts=[1,4,16] study.dims=[4]",
    ),
    "frontier": (
        "sweep", "Gain against trained parameters, of all methods at one site, a layer and all; equal counts compared.",
        r"qrun sweep frontier study.dims=[4,16] study.controls=\[lora]",
    ),
    "ladder": (
        "sweep", "Gain, penalty, the rate where the gain ends, and recovery over the size of the frozen model.",
        r"qrun sweep ladder study.rungs=\[models/small-muon] study.sites=\[one]",
    ),
    "circuits": (
        "sweep", "Blocks trained as circuits of k CZ: gain against CZ, with Cayley blocks, whole and cut, beside them.",
        "qrun sweep circuits study.czs=[2,6,14]",
    ),
    "recover": (
        "", "What an adapter, its controls and healing bring back of what compression costs; three recoveries.",
        "qrun recover compression=mpo study.ratios=[0.7]",
    ),
    "questions": (
        "eval",
        "Multiple choice by likelihood and by sampled answers: original, model, model with adapter; your own questions "
        "by questions=own questions.path=FILE.",
        "qrun eval questions model=local model.path=small model@original=nano adapter.path=results/runs/<run>/adapter",
    ),
}  # fmt: skip


def module(name: str):  # type: ignore[no-untyped-def]  # a module is its own protocol, cells.study.Study
    """The module of a study; imports numpy and pandas, not torch."""
    return import_module(f"qrun.studies.{name}")


def configure(name: str, words: list[str]):  # type: ignore[no-untyped-def]  # the study's own Config
    """The checked config of a study; its YAML is sweep_<name>, or <name> for a verb of its own."""
    from qrun.config.compose import compose  # Hydra: the CLI lists studies without it

    verb = f"sweep_{name}" if STUDIES[name][0] == "sweep" else name
    return compose(verb, words, module(name).Config)
