"""Folders of PEFT: which of our adapters PEFT loads, and which of PEFT's we run.

    peft_config(adapter, base)                   its adapter_config.json; None where PEFT has no such adapter
    to_peft(method, tensors), from_peft(...)     names and values both ways, exactly
    read_peft(file, values, tensors)             an OFT adapter (as Cayley blocks) or a LoRA adapter made elsewhere

PEFT's OFT computes x R with R = (I - S)(I + S)^-1 for skew S on row vectors, so that R = Q^T and S = -K/2 (its
`oft_R.weight` is S's upper triangle). Halving and doubling a float is exact.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from qrun.adapters.cayley import cayley
from qrun.adapters.layers import PeftAdapter
from qrun.adapters.linear import Adapter
from qrun.adapters.methods import OF_PEFT, spec
from qrun.adapters.sites import PLACE
from qrun.config.schema import PROJECTIONS, AdapterConfig, Side
from qrun.errors import InputError
from qrun.foreign import brief, named, typed

PREFIX = "base_model.model.model."
OFT = ".oft_R.weight"
SITE = rf"base_model\.model\.(?:model\.)?({PLACE})\.([A-Za-z0-9_.]+)"
READ = {
    "OFT": (
        "r", "oft_block_size", "module_dropout", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms",
    ),
    "LORA": ("r", "lora_alpha", "use_rslora", "lora_dropout"),
}  # fmt: skip
# Fields that say where an adapter sits or came from; its tensors tell the sites.
ABOUT = (
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_weights",
)  # fmt: skip
STARTS = (True, False, "gaussian", "eva", "orthogonal")  # of LoRA, those that leave the model's own weights alone


class Oft(TypedDict, total=False):
    """What is read of an OFT adapter's config."""

    base_model_name_or_path: str | None
    block_share: bool | None
    use_cayley_neumann: bool | None
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=100)]


class Lora(TypedDict, total=False):
    """What is read of a LoRA adapter's config."""

    base_model_name_or_path: str | None
    lora_alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    use_rslora: bool | None


@dataclass
class Foreign:
    """What PEFT wrote, in our words. A `shared` tensor is one block for all of a site; `remark` says what is not known
    of it."""

    config: AdapterConfig
    tensors: dict[str, Tensor]
    sites: list[str]
    base: str
    shared: bool
    remark: str


def peft_config(adapter: Adapter, base: Mapping[str, Any]) -> dict[str, Any] | None:
    """PEFT's adapter_config.json of an adapter that PEFT can hold: Cayley blocks on the input without sign constraint,
    and layers that PEFT made; None for all others."""
    c, targets = adapter.config, [f"model.{name}" for name in adapter.modules]
    common = {
        "base_model_name_or_path": base.get("hub_id") or base.get("path") or base["name"],
        "revision": base.get("revision"), "task_type": "CAUSAL_LM", "inference_mode": True,
    }  # fmt: skip
    if c.method == "cayley" and c.side is Side.input and not c.sign_constrained:
        return {
            "peft_type": "OFT", "r": 0, "oft_block_size": c.dim, "use_cayley_neumann": False, "block_share": False,
            "coft": False, "module_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "init_weights": True,
            "target_modules": targets, **common,
        }  # fmt: skip
    if isinstance(adapter, PeftAdapter):
        found = spec(c.method).peft_config(c, targets).to_dict()
        return {key: sorted(v) if isinstance(v, set) else v for key, v in found.items()} | common
    return None


def to_peft(method: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`<site>` -> K, or `<site>.lora_A.default.weight` -> A, under PEFT's names and in its units."""
    if method == "cayley":
        return {f"{PREFIX}{site}{OFT}": value / -2 for site, value in tensors.items()}
    return {PREFIX + name.replace(".default", "", 1): value for name, value in tensors.items()}


def from_peft(method: str, tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The inverse of `to_peft`, of the tensors of `file`. Raises InputError for a tensor at no projection."""
    found = {}
    for name, value in tensors.items():
        match = re.fullmatch(SITE, name)
        if match is None:
            raise InputError(f"{file}: {named(name)} is at none of the projections {', '.join(PROJECTIONS)}")
        site, own = match[1], match[4]
        if method == "cayley":
            if f".{own}" != OFT:
                raise InputError(f"{file}: {named(name)}: expected {OFT[1:]}")
            found[site] = value * -2
        else:
            kind, dot, rest = own.partition(".")
            found[f"{site}.{kind}.default{dot}{rest}"] = value
    if len(found) < len(tensors):
        raise InputError(f"{file}: has a site twice, under two names")
    return found


def read_peft(file: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Foreign:
    """An adapter that PEFT wrote, from its config `values` and its tensors. Raises InputError for what changes the
    output in a way that is not computed here, and for tensors of other shapes than PEFT's."""
    kind = values["peft_type"]
    if not isinstance(kind, str) or kind not in READ:
        raise InputError(f"{file}: peft_type={named(str(kind))}: of PEFT's adapters {' and '.join(READ)} are read")
    _check_fields(file, values, kind)
    method, folder = OF_PEFT[kind], file.parent
    found = {name: value.float() for name, value in from_peft(method, tensors, folder).items()}
    if not found:
        raise InputError(f"{folder}: no tensors there")
    for name, value in found.items():
        if value.ndim != 2 or 0 in value.shape:
            raise InputError(
                f"{folder}: {name}: tensor of shape {brief(list(value.shape))}, but PEFT's have two widths"
            )
    places = [match for name in tensors if (match := re.fullmatch(SITE, name))]
    sites = list(dict.fromkeys(match[1] for match in places))
    dim, rank, shared = 4, 1, False
    if method == "cayley":
        oft = typed(Oft, values, file)
        base, shared = oft.get("base_model_name_or_path"), bool(oft.get("block_share"))
        remark = ""
        widths = _one_size(file, {value.shape[-1] for value in found.values()}, "block")
        dim = (1 + isqrt(1 + 8 * widths)) // 2
        if dim * (dim - 1) // 2 != widths:
            raise InputError(f"{folder}: blocks of {widths} parameters; b(b-1)/2 are needed, as 1, 6 or 28")
        if oft.get("use_cayley_neumann"):
            found = {name: -value for name, value in found.items()}  # PEFT's series is that of (I + S)(I - S)^-1
            terms = oft.get("num_cayley_neumann_terms", 5)
            miss = max(_neumann_miss(value, dim, terms) for value in found.values())
            remark = (
                f"; its Neumann series is run as the exact Cayley map, entries of a block differ by up to {miss:.1e}"
            )
    else:
        lora = typed(Lora, values, file)
        base, remark = lora.get("base_model_name_or_path"), ""
        rank = _one_size(file, {value.shape[0] for name, value in found.items() if ".lora_A." in name}, "rank")
        scale = lora.get("lora_alpha", 8) / (rank**0.5 if lora.get("use_rslora") else rank)
        found = {name: value * scale if ".lora_B." in name else value for name, value in found.items()}
    chosen = [p for p in PROJECTIONS if p in {match[3] for match in places}]
    layers = sorted({int(match[2]) for match in places})
    config = AdapterConfig(method=method, dim=dim, rank=rank, projections=chosen, layers=layers)
    model = brief(base)[1:-1] if base else "an unnamed model"
    remark = f"made by PEFT for {model}; whether that is this model is not checked{remark}"
    return Foreign(config, found, sites, model, shared, remark)


def _check_fields(file: Path, values: Mapping[str, Any], kind: str) -> None:
    """Every field that is not in READ or ABOUT has PEFT's default."""
    import peft

    defaults = {"OFT": peft.OFTConfig, "LORA": peft.LoraConfig}[kind]().to_dict()
    for key, value in values.items():
        harmless = key in (*READ[kind], *ABOUT) or (key == "init_lora_weights" and value in STARTS)
        if not harmless and value and value != defaults.get(key):
            key, only = key[:60], brief(defaults.get(key))
            raise InputError(f"{file}: {key}={brief(value)} is not computed here; only {key}={only} is")


def _one_size(file: Path, sizes: set[int], what: str) -> int:
    if len(sizes) != 1:
        raise InputError(f"{file.parent}: sites of {what} sizes {brief(sorted(sizes))}; one size for all is read")
    return sizes.pop()


def _neumann_miss(skew: Tensor, dim: int, terms: int) -> float:
    """Largest entry by which PEFT's truncated series misses the orthogonal blocks of K [B, P]."""
    from peft.tuners.oft.layer import OFTRotationModule

    series = OFTRotationModule(len(skew), skew.shape[1], dim, len(skew) * dim, num_cayley_neumann_terms=terms)
    series.weight.data = skew / 2
    with torch.no_grad():
        rows = series(torch.eye(dim).repeat(1, len(skew)))  # x R of every unit vector in every block
    return float((rows.view(dim, len(skew), dim).permute(1, 2, 0) - cayley(skew, dim)).abs().max())
