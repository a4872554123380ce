"""`qrun recover`: what an adapter, its controls and healing bring back of what compression costs.

An adapter also adapts to the text it is trained on. So three recoveries stand side by side, with PPL_o, PPL_c, PPL_c+a,
PPL_o+a the perplexities of the original, the compressed model, and both with an adapter:
    shifted   (PPL_c - PPL_c+a) / (PPL_c - PPL_o) on text the model was not pretrained on: the paper's definition,
              adaptation included
    home      the same, trained and measured on (held-out) text of the model's own pretraining distribution, where that
              is known: of models that scripts/pretrain_nano.py made, or of the one that data@home is said to belong to
    adapted   (PPL_c - PPL_c+a) / (PPL_c - PPL_o+a) on the shifted text: against an original that was adapted too

A compression that looks at text is calibrated on the text that it is judged on: else repair of the wrong calibration
counts as recovery.

Margin: the home recovery of the distilled adapter is 73 % or more (the paper's 83 % less 10).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from qrun.cells.cell import Cell, Scalar
from qrun.compression.forms import check
from qrun.config.ranges import because_of, require
from qrun.config.schema import AdapterConfig, CompressionConfig
from qrun.config.verbs import CompressConfig
from qrun.evaluation.intervals import over_documents
from qrun.evaluation.resampling import recovery
from qrun.evaluation.results import Results
from qrun.evaluation.trends import mean_interval
from qrun.language.models import model_shape
from qrun.recipes.tasks import Compress
from qrun.report.grade import Verdict, together, within
from qrun.studies.grid import (
    HOME,
    Say,
    StudyAxes,
    StudyRun,
    at_sites,
    base_cell,
    different,
    exact_cell,
    home_is_known,
    matched,
    train_cell,
    usable,
)  # fmt: skip
from qrun.studies.statistics import RESAMPLES, SEED, both_interval, interval_of, limits, nats, text, weight

SHIFTED = "shifted"
MOST, DAMAGE = 0.73, 1.05  # least recovery; least rise of perplexity that leaves something to recover
ROW = ["text", "ratio", "what", "b"]


@dataclass
class Axes(StudyAxes):
    """Axes of `qrun recover`."""

    ratios: list[float] = field(default_factory=lambda: [0.5])  # of parameters kept

    def __post_init__(self) -> None:
        super().__post_init__()
        different("study.ratios", self.ratios)
        shares = all(0 < r < 1 for r in self.ratios)
        require(shares, "study.ratios", self.ratios, "give shares of the parameters between 0 and 1")
        one = len(self.sites) == 1
        require(one, "study.sites", [s.value for s in self.sites], "recovery is studied at one set of sites at a time")


@dataclass
class Config(StudyRun):
    """`data` is the shifted text, `home` text from the model's own pretraining distribution."""

    compression: CompressionConfig = field(default_factory=CompressionConfig)
    study: Axes = field(default_factory=Axes)

    def __post_init__(self) -> None:
        super().__post_init__()
        bond = self.compression.bond
        require(bond is None, "compression.bond", bond, "the study's axis is study.ratios; set null")


@dataclass(frozen=True)
class Arm:
    """One way to train: its words, method, and share of distillation from the original."""

    what: str
    adapter: AdapterConfig
    distill: float = 0.0


def cells(config: Config, say: Say) -> Iterator[Cell]:
    """Text x ratio x arm x seed; ratio 1 is the original, whose adapter is the third recovery's reference."""
    shape = model_shape(config.model)
    dims = [dim for _, dim in usable(config, say)]
    home = config.home
    if home is not None and not home_is_known(home, config.model):
        name = config.model.name
        say(f"left out, text=home: libdocs is nano's pretraining text, not that of {name}; name its own, data@home=...")
        home = None
    for text_name, data in ((SHIFTED, config.data), (HOME, home)):
        if data is None:
            continue
        shifted = text_name == SHIFTED
        for ratio in (1.0, *config.study.ratios):
            made: Cell | None = None
            point: dict[str, Scalar] = {"text": text_name, "ratio": ratio}
            if ratio < 1:
                with because_of("study.ratios", ratio):
                    compression = replace(config.compression, ratio=ratio)
                    if shape is not None:
                        check(compression, shape)
                own = compression.calibrated  # else one model serves both texts
                words = CompressConfig(config.model, data if own else config.data, compression)
                made = Cell(point if own else {"ratio": ratio}, Compress(words, config.results))
                if shifted or own:
                    yield made
            base = base_cell(config, point, data, made)
            yield base
            for arm in arms(config, dims if shifted else dims[:1], ratio < 1, shifted):
                for seed in config.study.seeds:
                    axes = {**point, "what": arm.what, "b": arm.adapter.dim if arm.what in OWN else dims[0]}
                    teacher = config.model if arm.distill else None
                    trained = train_cell(config, axes, arm.adapter, seed, data, made, teacher, arm.distill)
                    yield trained
                    yield exact_cell(config, trained, base, data=data)


OWN = ("adapter", "adapter, distilled", "sign-constrained, distilled")


def arms(config: Config, dims: list[int], compressed: bool, shifted: bool) -> Iterator[Arm]:
    """Adapters of every b; for the first also plain, sign-constrained, controls and healing. Home text has fewer."""
    own, share = at_sites(config.adapter, config.study.sites[0]), config.training.distill_weight
    first = replace(own, dim=dims[0])
    if not compressed:
        yield from (Arm("adapter", replace(own, dim=dim)) for dim in dims)
        return
    yield from (Arm("adapter, distilled", replace(own, dim=dim), share) for dim in dims)
    if shifted:
        yield Arm("adapter", first)
        yield Arm("sign-constrained, distilled", replace(first, sign_constrained=True), share)
    for name in config.study.controls if shifted else config.study.controls[:1]:
        yield Arm(f"{name}, distilled", matched(config, first, name), share)
    healing = replace(own, method="healing", projections="all", layers="all", dim=dims[0])
    yield Arm("healing, distilled", healing, share)


def numbers(results: Results) -> Mapping[str, pd.DataFrame]:
    """Recoveries of every arm with intervals over documents and seeds; sizes of the compressed models."""
    table = results.table
    measured = table[table["kind"] == "measure"]
    base, adapted = measured[measured["method"] == "none"], measured[measured["method"] != "none"]
    rows = []
    for point, group in adapted[adapted["ratio"] < 1].groupby(ROW, sort=False):
        here = dict(zip(ROW, point, strict=True))
        own = base[base["text"] == here["text"]]
        original, compressed = own[own["ratio"] == 1], own[own["ratio"] == here["ratio"]]
        reference = adapted[(adapted["ratio"] == 1) & (adapted["text"] == here["text"])]
        reference = reference[reference["b"] == (here["b"] if here["text"] == SHIFTED else reference["b"].min())]
        row = {
            **here, "parameters": int(group["parameters"].iloc[0]), "seeds": len(group),
            "original": original["perplexity"].iloc[0], "compressed": compressed["perplexity"].iloc[0],
            "original_adapted": reference["perplexity"].mean(), "perplexity": group["perplexity"].mean(),
            **recovered("recovery", results, compressed, group, original),
        }  # fmt: skip
        if here["text"] == SHIFTED:
            row |= recovered("adapted", results, compressed, group, reference)
        rows.append(row)
    sizes = table[table["kind"] == "compress"].dropna(axis=1, how="all")
    return {"text": text(results, base[base["ratio"] == 1]), "recovery": pd.DataFrame(rows), "sizes": sizes}


def recovered(
    name: str, results: Results, compressed: pd.DataFrame, adapted: pd.DataFrame, reference: pd.DataFrame
) -> dict[str, float]:
    """Share of the damage that came back, from nats averaged over seeds; intervals over documents, seeds, and both."""
    arrays = [nats(results, rows) for rows in (compressed, adapted, reference)]
    size = weight(results, compressed)
    value = float(recovery(arrays[0], arrays[1], arrays[2], size))
    level = reference["perplexity"].to_numpy()
    damage = compressed["perplexity"].iloc[0] - (level if len(level) == len(adapted) else level.mean())
    each = (compressed["perplexity"].iloc[0] - adapted["perplexity"].to_numpy()) / damage
    documents = over_documents(recovery, arrays, size, RESAMPLES, SEED)
    found = {name: value, **limits(f"{name}_seed", mean_interval(np.atleast_1d(each).tolist()))}
    over = both_interval(recovery, results, compressed, adapted, reference)
    return {**found, **limits(f"{name}_document", documents), **limits(f"{name}_both", over)}


def grades(found: Mapping[str, pd.DataFrame]) -> list[Verdict]:
    """Home recovery of the distilled adapter of the first b, at ratios that did damage; no grade without home text."""
    rows = found["recovery"]
    own = rows[(rows["what"] == "adapter, distilled") & (rows["text"] == HOME)]
    if own.empty:
        return []
    near = own[own["compressed"] > DAMAGE * own["original"]]
    outcomes = []
    for row in near.to_dict("records"):
        outcomes.append(within(interval_of(row, "recovery_"), low=MOST))
    return [Verdict("recovery", together(outcomes), {"seeds": int(rows["seeds"].max())})]
