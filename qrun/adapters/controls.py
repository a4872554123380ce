"""Controls: what a sceptic trains at the same sites, on the same windows, for the same steps.

    attach_method(model, sites, AdapterConfig(method=lora, rank=4)) -> Adapter      every method starts as the identity

PEFT makes LoRA (arXiv:2106.09685), OFT (2306.07280) and the diagonal ((IA)^3 on inputs, 2205.05638). Ours are BOFT
(2311.06243; PEFT's falls back to a single factor where its CUDA extension does not build), unconstrained blocks I + M,
the dense matrix, and the healing of a compressed model's own factors.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qrun.adapters.cayley import cayley, rotate
from qrun.adapters.linear import Adapter, attach, replace_linears
from qrun.adapters.sites import Site, count_parameters
from qrun.compression.factors import FactoredLinear, read_factors
from qrun.config.schema import AdapterConfig, Method
from qrun.errors import InputError


class Wrapped(nn.Module):
    """A frozen linear layer with something trainable before it; switched off, it is the layer alone."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.transform(x) if self.enabled else x)

    def transform(self, x: Tensor) -> Tensor:
        """What happens to the input [..., in]."""
        raise NotImplementedError


class BlockLinear(Wrapped):
    """x -> (I + M) x, M block-diagonal [in/b, b, b] and free.

    The paper's blocks without their constraint; b = in is the dense matrix.
    """

    def __init__(self, base: nn.Linear, dim: int) -> None:
        super().__init__(base)
        self.matrix = nn.Parameter(torch.zeros(base.in_features // dim, dim, dim, device=base.weight.device))

    def transform(self, x: Tensor) -> Tensor:
        return x + rotate(x, self.matrix.to(x.dtype))


class ButterflyLinear(Wrapped):
    """x -> B_m ...

    B_1 x: factor i rotates blocks made of two chunks of b/2 channels, 2^i chunks apart, so that m factors mix
    2^(m-1) b channels.
    """

    def __init__(self, base: nn.Linear, dim: int, factors: int) -> None:
        super().__init__(base)
        self.dim = dim
        self.skew = nn.Parameter(
            torch.zeros(factors, base.in_features // dim, dim * (dim - 1) // 2, device=base.weight.device)
        )

    def transform(self, x: Tensor) -> Tensor:
        half, shape = self.dim // 2, x.shape
        for level, parameters in enumerate(self.skew):
            chunks = x.reshape(*shape[:-1], -1, 2, 2**level, half).transpose(-3, -2)
            x = (
                rotate(chunks.reshape(shape), cayley(parameters, self.dim).to(x.dtype))
                .view(chunks.shape)
                .transpose(-3, -2)
                .reshape(shape)
            )
        return x


class ControlAdapter(Adapter):
    """Any set of site modules with trainable tensors, behind the interface of the Cayley adapter."""

    def tensors(self) -> dict[str, nn.Parameter]:
        """`<site>.<tensor>` -> trainable parameters."""
        found = {name: dict(module.named_parameters()) for name, module in self.modules.items()}
        return {f"{name}.{key}": p for name, tensors in found.items() for key, p in tensors.items() if p.requires_grad}

    def set_executor(self, executor: Any) -> None:
        if executor is not None:
            raise InputError(
                f"adapter.method={self.config.method.value}: only Cayley blocks are circuits; use device=exact"
            )

    def merge(self) -> None:
        raise InputError(f"adapter.method={self.config.method.value}: only Cayley adapters are merged")

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class PeftAdapter(ControlAdapter):
    """Layers that PEFT made."""

    def bases(self) -> dict[str, nn.Module]:
        return {name: module.base_layer for name, module in self.modules.items()}

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before = [module.disable_adapters for module in self.modules.values()]
        for module in self.modules.values():
            module._disable_adapters = True
        try:
            yield
        finally:
            for module, value in zip(self.modules.values(), before, strict=True):
                module._disable_adapters = value


def attach_method(
    model: Any, selected: Sequence[Site], config: AdapterConfig, folder: str | Path | None = None
) -> Adapter:
    """Freeze `model` and put the method's layers on the selected sites. `folder` is the model's own, where healing
    finds its factors.

    Raises InputError for a BOFT that does not fit a width, and for healing of a model that is not compressed.
    """
    method = config.method
    if method is Method.cayley:
        return attach(model, selected, config)
    if method in (Method.lora, Method.oft, Method.diagonal):
        adapter: Adapter = PeftAdapter(config, _inject(model, selected, config))
    elif method is Method.healing:
        factors = read_factors(folder)
        factored = [site for site in selected if site.name in factors]  # a sensitivity profile leaves some sites dense
        if not factored:
            raise InputError(
                f"adapter.method=healing: {selected[0].name} of this model is not factored; healing needs the "
                f"folder of a compressed model"
            )
        pending = iter(factored)
        adapter = ControlAdapter(
            config, replace_linears(model, factored, lambda base: FactoredLinear(base, factors[next(pending).name]))
        )
    elif method is Method.boft:
        for site in selected:
            if site.in_features % (config.dim * 2 ** (config.factors - 1)) or config.dim % 2:
                raise InputError(
                    f"adapter.factors={config.factors}: {config.factors} butterfly factors of even blocks "
                    f"b={config.dim} need a width that is a multiple of "
                    f"{config.dim * 2 ** (config.factors - 1)}; {site.name} has {site.in_features}"
                )
        adapter = ControlAdapter(
            config, replace_linears(model, selected, lambda base: ButterflyLinear(base, config.dim, config.factors))
        )
    else:
        width = (lambda base: base.in_features) if method is Method.dense else (lambda base: config.dim)
        adapter = ControlAdapter(config, replace_linears(model, selected, lambda base: BlockLinear(base, width(base))))
    stated = count_parameters(selected, config)
    if stated is not None and stated != adapter.count():
        raise AssertionError(f"{method.value}: {adapter.count()} trainable parameters, expected {stated}")
    return adapter


def _inject(model: Any, selected: Sequence[Site], config: AdapterConfig) -> dict[str, Any]:
    """Let PEFT replace the selected layers in place."""
    import peft

    names = [f"model.{site.name}" for site in selected]
    model.requires_grad_(False)
    peft_config: Any = {
        Method.lora: lambda: peft.LoraConfig(
            r=config.rank, lora_alpha=config.rank, lora_dropout=0.0, target_modules=names
        ),
        Method.oft: lambda: peft.OFTConfig(
            oft_block_size=config.dim, r=0, use_cayley_neumann=False, target_modules=names
        ),
        Method.diagonal: lambda: peft.IA3Config(target_modules=names, feedforward_modules=names),  # scales the input
    }[config.method]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(peft_config, model)
    modules = {site.name: model.get_submodule(f"model.{site.name}") for site in selected}
    for module in modules.values():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = (
                    parameter.data.float()
                )  # as the Cayley adapter: float32 beside frozen weights of any type
    return modules
