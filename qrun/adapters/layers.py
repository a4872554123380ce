"""The layers behind the controls, ours and PEFT's; the methods in methods/ say what they are and when to use them."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qrun.adapters.cayley import cayley, rotate
from qrun.adapters.linear import Adapter, replace_linears
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig
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
    """x -> (I + M) x, M block-diagonal [in/b, b, b] and free. The paper's blocks without their constraint; b = in is
    the dense matrix."""

    def __init__(self, base: nn.Linear, dim: int) -> None:
        super().__init__(base)
        self.matrix = nn.Parameter(torch.zeros(base.in_features // dim, dim, dim, device=base.weight.device))

    def transform(self, x: Tensor) -> Tensor:
        return x + rotate(x, self.matrix.to(x.dtype))


class ButterflyLinear(Wrapped):
    """x -> B_m ... B_1 x: factor i rotates blocks made of two chunks of b/2 channels, 2^i chunks apart, so that m
    factors mix 2^(m-1) b channels."""

    def __init__(self, base: nn.Linear, dim: int, factors: int) -> None:
        super().__init__(base)
        self.dim, shape = dim, (factors, base.in_features // dim, dim * (dim - 1) // 2)
        self.skew = nn.Parameter(torch.zeros(shape, device=base.weight.device))

    def transform(self, x: Tensor) -> Tensor:
        half, shape = self.dim // 2, x.shape
        for level, parameters in enumerate(self.skew):
            chunks = x.reshape(*shape[:-1], -1, 2, 2**level, half).transpose(-3, -2)
            turned = rotate(chunks.reshape(shape), cayley(parameters, self.dim).to(x.dtype))
            x = turned.view(chunks.shape).transpose(-3, -2).reshape(shape)
        return x


class ControlAdapter(Adapter):
    """Any set of site modules with trainable tensors, behind the interface of the adapter of blocks."""

    def tensors(self) -> dict[str, nn.Parameter]:
        """`<site>.<tensor>` -> trainable parameters."""
        found = {name: dict(module.named_parameters()) for name, module in self.modules.items()}
        return {f"{name}.{key}": p for name, tensors in found.items() for key, p in tensors.items() if p.requires_grad}

    def set_executor(self, executor: Any) -> None:
        if executor is not None:
            raise InputError(f"adapter.method={self.config.method}: its matrices are no circuits; use device=exact")

    def merge(self) -> None:
        raise InputError(f"adapter.method={self.config.method}: only orthogonal blocks are merged")

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class PeftAdapter(ControlAdapter):
    """Layers that PEFT made."""

    SWITCH, OFF = "_disable_adapters", True

    def bases(self) -> dict[str, nn.Module]:
        return {name: module.base_layer for name, module in self.modules.items()}


def wrapped(
    model: nn.Module, selected: Sequence[Site], config: AdapterConfig, wrap: Callable[[Site, nn.Linear], nn.Module]
) -> ControlAdapter:
    """Freeze the model and put wrap(site, linear) in the place of each selected linear layer."""
    return ControlAdapter(config, replace_linears(model, selected, wrap))


def inject(model: Any, selected: Sequence[Site], config: AdapterConfig, peft_config: Any) -> PeftAdapter:
    """Freeze the model and let PEFT replace the selected layers; what is trained is float32, as in ours."""
    import peft

    model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(peft_config, model)
    adapter = PeftAdapter(config, {site.name: model.get_submodule(f"model.{site.name}") for site in selected})
    for parameter in adapter.tensors().values():
        parameter.data = parameter.data.float()
    return adapter
