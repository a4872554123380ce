"""A frozen projection with orthogonal blocks on one side, and the set of them in one model.

adapter = attach(model, sites, AdapterConfig(dim=4))     identity start, the model's own weights frozen
with adapter.disabled(): ...                             the model as it was
adapter.merge(); adapter.unmerge()                       Q folded into the weights, and the very same weights back
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qrun.adapters.cayley import FoldedLinear, fold_input, fold_output, rotate
from qrun.adapters.forms import CayleyForm, Form, Written
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig, Side
from qrun.errors import InputError


class Executor(Protocol):
    """Runs many (token, block) circuits on one device: the seam between adapters and devices."""

    def __call__(self, blocks: Tensor, slices: Tensor) -> Tensor:
        """Blocks [B, b, b], slices [N, B, b] -> estimates [N, B, b]."""
        ...


class SiteExecutors(Protocol):
    """A device that gives each site an executor of its own, with its own stream of shots."""

    def site(
        self, name: str, effect: Tensor | None = None, written: Callable[[], Written | None] | None = None
    ) -> Executor:
        """The executor of a site; `effect` [B] is how much an error of each slice does behind the projection, `written`
        gives the blocks' own circuits."""
        ...


CAYLEY = CayleyForm()


class AdaptedLinear(nn.Module):
    """y = W Q x (side input) or y = Q W x (side output), W frozen, Q a form of what is trained, Cayley(K) of K where
    none is named. Sign-constrained, z = Q x is replaced by z = sign(x) * |Q x| with sign(0) = +1: what the paper's
    readout returns without noise. With an executor set, z is whatever that device estimates."""

    def __init__(self, base: nn.Linear, dim: int, side: Side, sign_constrained: bool, form: Form = CAYLEY) -> None:
        super().__init__()
        width = base.in_features if side is Side.input else base.out_features
        self.base = base.requires_grad_(False)
        self.dim, self.side, self.sign_constrained = dim, side, sign_constrained
        self.form = form
        self.trained = nn.Parameter(form.start(width // dim, dim).to(base.weight.device))
        self.executor: Executor | None = None
        self.enabled = True
        self.kept = 1.0  # noise-aware: the share of counts that gates are expected to leave
        self._cache: tuple[int, Tensor] | None = None
        self._original: Tensor | None = None  # the frozen weight, while merged

    def blocks(self) -> Tensor:
        """Q [B, b, b] in float32; computed once per parameter update when no gradient is wanted."""
        own = self.trained
        if torch.is_grad_enabled() and own.requires_grad:
            return self.form.blocks(own, self.dim)
        if self._cache is None or self._cache[0] != own._version or self._cache[1].device != own.device:
            self._cache = (own._version, self.form.blocks(own.detach(), self.dim))
        return self._cache[1]

    def effect(self) -> Tensor:
        """Frobenius norm [B] of the part of W that reads each slice; 1 for slices that W writes."""
        if self.side is Side.output:
            return torch.ones(self.base.out_features // self.dim, device=self.base.weight.device)
        return torch.linalg.matrix_norm(dense(self.base).float().unflatten(1, (-1, self.dim)).transpose(0, 1))

    def written(self) -> Written | None:
        """The circuits of the blocks, angles [B, n + 2 k] in float64 and the order of gates, where the form is one;
        None where Q has to be synthesised."""
        return self.form.written(self.trained, self.dim)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled or self._original is not None:
            return self.base(x)
        q = self.blocks()
        if self.side is Side.output:
            return self._apply_blocks(self.base(x), q)
        plain = self.executor is None and not self.sign_constrained and self.kept == 1
        plain = plain and self.base.weight.is_floating_point()  # a quantised weight multiplies by itself
        if plain and x.numel() // x.shape[-1] >= self.base.out_features:
            return FoldedLinear.apply(x, q, self.base.weight, self.base.bias)
        return self.base(self._apply_blocks(x, q))

    def _apply_blocks(self, x: Tensor, q: Tensor) -> Tensor:
        if self.executor is not None:
            slices = x.reshape(-1, q.shape[0], q.shape[1])
            return self.executor(q, slices).to(x.dtype).reshape(x.shape)
        z = rotate(x, q.to(x.dtype))
        if self.kept < 1:
            uniform = x.unflatten(-1, q.shape[:2]).square().mean(-1, keepdim=True).expand(*x.shape[:-1], *q.shape[:2])
            size = (self.kept * z.square() + (1 - self.kept) * uniform.reshape(x.shape) + 1e-20).sqrt()
            return torch.where(x < 0, -size, size)
        return torch.where(x < 0, -z.abs(), z.abs()) if self.sign_constrained else z

    @torch.no_grad()
    def merge(self) -> None:
        """Fold Q into the weight; the frozen weight is kept aside, so that unmerge is exact."""
        if self.sign_constrained or self.executor is not None:
            raise InputError("a sign-constrained or device-executed adapter is not linear and cannot be merged")
        if not self.base.weight.is_floating_point():
            raise InputError("model.quantization: a quantised weight cannot take the adapter in; set null")
        if self._original is None:
            self._original = self.base.weight.data
            fold = fold_input if self.side is Side.input else fold_output
            q = self.blocks()
            self.base.weight.data = fold(self._original.float(), q).to(self._original.dtype)
            if self.side is Side.output and self.base.bias is not None:
                self._bias = self.base.bias.data
                self.base.bias.data = rotate(self._bias.float(), q).to(self._bias.dtype)

    def unmerge(self) -> None:
        """Restore the frozen weight bit for bit."""
        if self._original is not None:
            self.base.weight.data, self._original = self._original, None
            if self.side is Side.output and self.base.bias is not None:
                self.base.bias.data = self._bias


def dense(linear: nn.Linear) -> Tensor:
    """The weight [out, in] of a frozen linear layer; one of bitsandbytes' is a rounded one."""
    if linear.weight.is_floating_point():
        return linear.weight.detach()
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    state: Any = getattr(linear, "state", None)  # of an 8-bit layer
    found: Tensor = dequantize_bnb_weight(linear.weight, state)  # type: ignore[arg-type]  # a Parameter of its own kind
    return found


class Adapter:
    """The adapted sites of one model, in the order of the forward pass."""

    SWITCH, OFF = "enabled", False  # attribute of the site modules, and its value for the frozen model

    def __init__(self, config: AdapterConfig, modules: Mapping[str, Any]) -> None:
        self.config, self.modules = config, modules

    def tensors(self) -> dict[str, nn.Parameter]:
        """Site name -> trainable parameters [B, P], P = b(b-1)/2 for Cayley blocks."""
        return {name: module.trained for name, module in self.modules.items()}

    def count(self) -> int:
        """Degrees of freedom that are trained."""
        return sum(p.numel() for p in self.tensors().values())

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Copy parameters in. Raises InputError where names or shapes are not those of this adapter."""
        given = {name: list(value.shape) for name, value in values.items()}
        own = {name: list(parameter.shape) for name, parameter in self.tensors().items()}
        for name in sorted(given.keys() | own.keys()):
            if given.get(name) != own.get(name):
                has = f"adapter.method={self.config.method} has {own.get(name, 'none')} here"
                raise InputError(f"{name}: tensor of shape {given.get(name, 'missing')}, but {has}")
        for name, parameter in self.tensors().items():
            parameter.copy_(values[name])

    def snapshot(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.tensors().items()}

    @property
    def first_layer(self) -> int:
        """Layers before this one are the frozen model's."""
        return min(int(name.split(".")[1]) for name in self.modules)

    def neutral(self) -> bool:
        """Whether the model computes what the frozen one does, bit for bit: Q = I at every site, and nothing else."""
        modules = [m for m in self.modules.values() if isinstance(m, AdaptedLinear) and m.kept == 1 and not m.executor]
        identity = torch.eye(self.config.dim)
        with torch.no_grad():
            return len(modules) == len(self.modules) and all((m.blocks().cpu() == identity).all() for m in modules)

    def set_executor(self, executor: Executor | SiteExecutors | None) -> None:
        """Let a device compute every Q x. A plain executor is shared, one with sites gives each site its own stream of
        shots. None is exact."""
        for name, module in self.modules.items():
            of_site = getattr(executor, "site", None)
            module.executor = executor if of_site is None else of_site(name, module.effect(), module.written)

    def bases(self) -> dict[str, nn.Module]:
        """The frozen linear layers."""
        return {name: module.base for name, module in self.modules.items()}

    @contextmanager
    def expecting(self, kept: float) -> Iterator[None]:
        """The forward pass gives what the paper's readout is expected to give, sign(x) |x| sqrt(kept p + (1 - kept) /
        b) with p = |Q x|^2 / |x|^2, where gates leave that share of the counts and nothing else is wrong. At 1 nothing
        changes."""
        modules = [module for module in self.modules.values() if isinstance(module, AdaptedLinear)]
        for module in modules:
            module.kept = kept
        try:
            yield
        finally:
            for module in modules:
                module.kept = 1.0

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The frozen model as it was before the adapter came."""
        before = {name: getattr(module, self.SWITCH) for name, module in self.modules.items()}
        for module in self.modules.values():
            setattr(module, self.SWITCH, self.OFF)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.modules[name], self.SWITCH, value)

    def merge(self) -> None:
        for module in self.modules.values():
            module.merge()

    def unmerge(self) -> None:
        for module in self.modules.values():
            module.unmerge()


def attach(
    model: nn.Module, selected: Sequence[Site], config: AdapterConfig, form: Callable[[Site], Form] = lambda _: CAYLEY
) -> Adapter:
    """Freeze `model` (a *ForCausalLM) and put an identity adapter on each selected projection, in place."""

    def wrap(site: Site, base: nn.Linear) -> AdaptedLinear:
        return AdaptedLinear(base, config.dim, config.side, config.sign_constrained, form(site))

    return Adapter(config, replace_linears(model, selected, wrap))


def replace_linears(
    model: nn.Module, selected: Sequence[Site], wrap: Callable[[Site, nn.Linear], nn.Module]
) -> dict[str, Any]:
    """Freeze the model, wrap(site, linear) in the place of each selected linear layer; site name -> new module."""
    model.requires_grad_(False)
    modules: dict[str, Any] = {}
    for site in selected:
        path, _, child = f"model.{site.name}".rpartition(".")
        parent = model.get_submodule(path)
        base = getattr(parent, child)
        if not isinstance(base, nn.Linear):
            raise InputError(f"{site.name}: expected a plain linear layer, found {type(base).__name__}")
        modules[site.name] = wrap(site, base)
        setattr(parent, child, modules[site.name])
    return modules


def detach(model: nn.Module, adapter: Adapter) -> None:
    """Undo `attach`: the original linear layers back in their places."""
    adapter.unmerge()
    for name, base in adapter.bases().items():
        path, _, child = f"model.{name}".rpartition(".")
        setattr(model.get_submodule(path), child, base)
