"""A whole model compressed in place: which bond each site gets, what is left of its parameters, and the folder it is
saved in.

    compress(language, config, ids) -> Compressed      weights replaced by their truncated products
    save(folder, language, compressed)                 an ordinary model folder, with the factors beside the weights

The saved weights are dense, so that every other command takes the folder as it is; `factors.safetensors` has the
compressed size.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qrun.adapters.saving import replace_folder
from qrun.adapters.sites import Site, sites
from qrun.compression.factors import FACTORS, contract, factorise
from qrun.compression.forms import Form, check
from qrun.config.schema import CompressionConfig, Profile
from qrun.errors import InputError
from qrun.language.models import LanguageModel

LEVELS = (0.5, 0.75, 1.0, 1.25)  # of the target ratio: what the profile tries at each site, beside leaving it alone


@dataclass(frozen=True)
class Compressed:
    """Cores and bond by site, sizes, and the sensitivity profile where one was measured (site -> ratio -> rise in
    nats per token)."""

    cores: dict[str, list[Tensor]]
    bonds: dict[str, int]
    statement: dict[str, Any]
    profile: dict[str, dict[str, float]]


def compress(
    language: LanguageModel, config: CompressionConfig, ids: Tensor, progress: Callable[[int], None] = lambda _: None
) -> Compressed:
    """Factor every projection and put the truncated weight in its place. `ids` [windows, T]: calibration text for
    whitening and for the profile."""
    check(config, language.shape)
    form, everything = Form(config.kind, config.cores), sites(language.shape)
    layers = {site.name: language.model.get_submodule(f"model.{site.name}") for site in everything}
    covariances = input_covariances(language.model, layers, ids) if config.activation_aware else {}

    def cores_at(site: Site, bond: int) -> list[Tensor]:
        return factorise(layers[site.name].weight.data, form, bond, covariances.get(site.name))

    profile: dict[str, dict[str, float]] = {}
    if config.profile is Profile.sensitivity:
        profile = sensitivity(language.model, everything, config.ratio, form, cores_at, ids, progress)
        ratios = allocate(everything, config.ratio, form, profile)
    else:
        ratios = dict.fromkeys(layers, config.ratio)
    cores, bonds = {}, {}
    for site in everything:
        if ratios[site.name] >= 1:
            continue  # the profile left this site alone
        bond = config.bond or form.bond_for(site.out_features, site.in_features, ratios[site.name])
        cores[site.name], bonds[site.name] = cores_at(site, bond), bond
    for name, factors in cores.items():
        layers[name].weight.data = contract([c.double() for c in factors]).to(layers[name].weight.dtype)
    return Compressed(cores, bonds, sizes(language.model, everything, cores, config), profile)


def sizes(
    model: Any, everything: list[Site], cores: dict[str, list[Tensor]], config: CompressionConfig
) -> dict[str, Any]:
    """Parameters and bytes before and after, of the projections and of the whole model."""
    dense = {site.name: site.in_features * site.out_features for site in everything}
    kept = {name: sum(c.numel() for c in cores[name]) if name in cores else size for name, size in dense.items()}
    whole, item = sum(p.numel() for p in model.parameters()), next(model.parameters()).element_size()
    rest = whole - sum(dense.values())
    return {
        "kind": config.kind.value, "cores": config.cores, "profile": config.profile.value,
        "activation_aware": config.activation_aware, "target_ratio": config.ratio if config.bond is None else None,
        "bond": config.bond, "projection_parameters": sum(dense.values()), "kept_parameters": sum(kept.values()),
        "kept_ratio": sum(kept.values()) / sum(dense.values()), "model_parameters": whole,
        "model_kept_parameters": rest + sum(kept.values()), "model_bytes": whole * item,
        "model_kept_bytes": (rest + sum(kept.values())) * item,
    }  # fmt: skip


@torch.no_grad()
def input_covariances(model: Any, layers: dict[str, Any], ids: Tensor) -> dict[str, Tensor]:
    """Mean of x x^T over calibration tokens for the input x of every layer, float64 [in, in]."""
    found: dict[str, Tensor] = {}

    def collect(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            found[name] = found.get(name, 0) + x.T @ x / len(ids)

        return hook

    handles = [layer.register_forward_pre_hook(collect(name)) for name, layer in layers.items()]
    try:
        for row in ids:
            model.model(input_ids=row[None].to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def nats(model: Any, ids: Tensor) -> float:
    """Mean negative log-likelihood of calibration windows [n, T]."""
    rows = ids.to(model.device)
    return sum(float(model(input_ids=row[None], labels=row[None]).loss) for row in rows) / len(rows)


def sensitivity(
    model: Any, everything: list[Site], ratio: float, form: Form, cores_at: Callable[[Site, int], list[Tensor]],
    ids: Tensor, progress: Callable[[int], None],
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Rise in nats per token when one site alone is compressed to each level. CompactifAI's layer sensitivity
    profiling."""
    base = nats(model, ids)
    found: dict[str, dict[str, float]] = {}
    for site in everything:
        layer = model.get_submodule(f"model.{site.name}")
        dense, found[site.name] = layer.weight.data, {}
        for level in levels(site, ratio, form):
            cores = cores_at(site, form.bond_for(site.out_features, site.in_features, level))
            layer.weight.data = contract([c.double() for c in cores]).to(dense.dtype)
            found[site.name][f"{level:g}"] = nats(model, ids) - base
            layer.weight.data = dense
        progress(1)
    return found


def levels(site: Site, ratio: float, form: Form) -> list[float]:
    """Ratios tried at a site: those of LEVELS that it can reach and that are below 1."""
    least = form.count(site.out_features, site.in_features, 1) / (site.in_features * site.out_features)
    return [level for factor in LEVELS if least <= (level := ratio * factor) < 1]


def allocate(
    everything: list[Site], ratio: float, form: Form, profile: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Ratio of each site. All start at their lowest level, then the step up that saves most nats per parameter is taken
    while the target allows it."""
    size = {site.name: site.in_features * site.out_features for site in everything}
    steps = {site.name: [*levels(site, ratio, form), 1.0] for site in everything}
    rise = {name: [*profile[name].values(), 0.0] for name in size}
    at = dict.fromkeys(size, 0)
    budget = ratio * sum(size.values()) - sum(steps[name][0] * size[name] for name in size)
    if budget < 0:
        raise InputError(f"compression.ratio={ratio:g}: cannot be reached by the profile's lowest levels")
    while True:
        moves = []
        for name, k in at.items():
            for to in range(k + 1, len(steps[name])):
                cost = (steps[name][to] - steps[name][k]) * size[name]
                if cost <= budget:
                    moves.append(((rise[name][k] - rise[name][to]) / cost, name, to, cost))
        if not moves or max(moves)[0] <= 0:
            return {name: steps[name][k] for name, k in at.items()}
        _, name, to, cost = max(moves)
        at[name], budget = to, budget - cost


def save(folder: Path, language: LanguageModel, compressed: Compressed) -> None:
    """Model folder with compression.json and factors.safetensors (`<site>.<core>`)."""

    def write(target: Path) -> None:
        language.model.save_pretrained(target)
        language.tokenizer.save_pretrained(target)
        numbered = [(name, k, core) for name, cores in compressed.cores.items() for k, core in enumerate(cores)]
        save_file({f"{name}.{k}": core.cpu() for name, k, core in numbered}, target / FACTORS)
        facts = {**compressed.statement, "base_model": language.identity, "bonds": compressed.bonds}
        facts["sensitivity"] = compressed.profile
        (target / "compression.json").write_text(json.dumps(facts, indent=1) + "\n")

    replace_folder(folder, write)
