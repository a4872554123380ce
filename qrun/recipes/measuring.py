"""A saved adapter in its model, and perplexities of the two: the step that evaluations, cells and generation share."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qrun.adapters.linear import Adapter, detach
from qrun.adapters.methods import spec
from qrun.adapters.saving import SavedAdapter
from qrun.adapters.sites import sites
from qrun.cells.workspace import Measurable, Opened
from qrun.config.schema import Dtype
from qrun.errors import InputError, RunFailed
from qrun.evaluation.measurement import Measurement, half_width
from qrun.evaluation.perplexity import measure
from qrun.language import models
from qrun.language.models import LanguageModel
from qrun.recipes.sizes import parameters
from qrun.report.screen import bar, say

Way = Callable[[], AbstractContextManager[object]]  # how the model stands while it is measured
WINDOWS = 16  # on which the effect of model.dtype is measured
COPY = 8 * 2**30  # bytes of a float32 copy of the model, at most
SAME = ("weights", "config", "tokenizer")  # digests that model and adapter must share


class Run(Measurable, Protocol):
    """What is measured, and the seed of its intervals."""

    seed: int


def attach_saved(language: LanguageModel, saved: SavedAdapter, path: str | Path) -> Adapter:
    """Put a saved adapter into the model it was trained in; InputError for any other model. PEFT's folders name their
    model only, so theirs is told and not checked."""
    own, base = language.identity, saved.base
    if saved.remark:
        say(f"adapter.path={path}: {saved.remark}")
    elif not base.keys() >= set(SAME):
        raise InputError(f"adapter.path={path}: says too little of its model; written by an older qrun; train it again")
    other = [] if saved.remark else [key for key in SAME if base.get(key) != own[key]]
    if other:
        which = ", ".join(f"{key} {base.get(key)} there, {own[key]} here" for key in other)
        raise InputError(f"adapter.path={path}: trained in {base.get('name')}, not in model={own['name']} ({which})")
    selected = [site for site in sites(language.shape) if site.name in saved.sites]
    if absent := sorted(set(saved.sites) - {site.name for site in selected}):
        raise InputError(f"adapter.path={path}: adapts {absent[0]}, which model={own['name']} does not have")
    adapter = spec(saved.config.method).attach(language.model, selected, saved.config, own["path"])
    if set(adapter.tensors()) != set(saved.tensors):
        detach(language.model, adapter)
        method = saved.config.method
        raise InputError(f"adapter.path={path}: its tensors are not those of method {method} at these sites")
    shapes = {name: parameter.shape for name, parameter in adapter.tensors().items()}
    shared = saved.shared and all(len(value) == 1 for value in saved.tensors.values())
    try:
        adapter.load({name: v.expand(shapes[name][0], -1) if shared else v for name, v in saved.tensors.items()})
    except InputError:
        detach(language.model, adapter)
        raise
    return adapter


def rounding(opened: Opened, config: Measurable) -> dict[str, float]:
    """What model.dtype does to the frozen model, which stands as it is: its perplexity and that of a float32 copy on
    the first windows, told and returned as metrics. Nothing for float32, and for a model whose copy would be large."""
    dtype, model = config.model.dtype, opened.language.model
    if dtype is Dtype.float32:
        return {}
    size = 4 * parameters(opened.language.shape)
    if size > COPY:
        say(f"the effect of model.dtype={dtype.value} is not measured: a float32 copy takes {size / 2**30:.0f} GiB")
        return {}
    plain = replace(config.model, dtype=Dtype.float32, quantization=None)
    copy, head = models.load(plain).model, opened.task.head(WINDOWS)
    own, other = (measure(m, head, config.evaluation.batch).perplexity for m in (model, copy))
    both = f" and model.quantization={config.model.quantization.value}" if config.model.quantization else ""
    change = f"the frozen model's perplexity by {own - other:+.4f}, from {other:.3f}"
    say(f"model.dtype={dtype.value}{both} changes {change}")
    return {"dtype/perplexity": own, "dtype/float32_perplexity": other}


def shuffled(value: Tensor, generator: torch.Generator) -> Tensor:
    """A rotation of the same size that knows nothing: the entries of K in another order and with other signs."""
    order = torch.randperm(value.numel(), generator=generator)
    signs = torch.randint(0, 2, (value.numel(),), generator=generator) * 2 - 1
    return (value.cpu().flatten()[order] * signs).view(value.shape).to(value.device)


def change_values(adapter: Adapter, values: str, seed: int) -> None:
    """Put a null in the place of trained parameters: zeros, or the same entries shuffled."""
    if values != "trained":
        generator = torch.Generator().manual_seed(seed)
        change = {"zero": torch.zeros_like, "shuffled": lambda value: shuffled(value, generator)}[values]
        adapter.load({name: change(value) for name, value in adapter.snapshot().items()})


def measured(
    title: str, opened: Opened, config: Measurable, adapter: Adapter | None, before: Measurement | None = None
) -> Measurement:
    """`measure` of what is opened, as it stands, behind a progress bar. What is below the first layer of `adapter`,
    attached or not, is taken from the cache."""
    batch = config.evaluation.batch
    trunk = opened.trunk_of(opened.task, batch, adapter, config.cache.gib)
    with bar(title, opened.task.scored, "tokens") as advance:
        try:
            result = measure(
                opened.language.model, opened.task, batch, lambda tokens: advance(tokens, ""), trunk, before
            )
        except RunFailed as error:
            raise RunFailed(f"{title}: {error}") from error
        advance(0, f"perplexity {result.perplexity:.3f}")
    return result


def narrowed(
    results: Mapping[str, Measurement], ways: Mapping[str, Way], opened: Opened, config: Run, adapter: Adapter | None
) -> tuple[dict[str, Measurement], Opened]:
    """All of `results` on more passages, each as the model stands in its way, until `half_width` of the first and the
    last is evaluation.precision or less. The interval is looked at after max_tokens, and whenever the tokens have
    doubled; where the text ends it stays wider, which is told. Returns them with what was measured."""
    found, evaluation = dict(results), config.evaluation
    wanted, tokens = evaluation.precision, evaluation.max_tokens
    while wanted is not None and tokens is not None:
        first, *_, last = [*found.values()] * 2 if len(found) == 1 else found.values()
        half, looks = half_width(first, last, evaluation.resamples, config.seed), opened.task.statement["looks"]
        is_there = "no interval" if math.isinf(half) else f"95 % within {half:.2%} of the perplexity"
        say(f"look {looks}: {sum(first.tokens):,} tokens, {is_there}; evaluation.precision={wanted:g}")
        tokens = 2 * opened.task.statement["max_tokens"]
        more = opened.more(config, tokens) if half > wanted else None
        if more is None:
            if half > wanted:
                say("the text has no more passages: the interval stays wider than wanted")
            elif looks > 1:
                say(f"looked at {looks} times: that makes an interval of 94 % of one of 95 %")
            break
        opened = more
        for name, way in ways.items():
            with way():
                found[name] = measured(name, opened, config, adapter, found[name])
    return found, opened
