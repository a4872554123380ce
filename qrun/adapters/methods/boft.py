"""Butterfly factors of orthogonal blocks, which mix many channels (arXiv:2311.06243).

Our own layer: PEFT's falls back to a single factor where its CUDA extension does not build.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qrun.adapters.methods.base import OwnMethod
from qrun.adapters.sites import Site, parameters
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError


class Boft(OwnMethod):
    """Butterfly orthogonal fine-tuning (arXiv:2311.06243)."""

    lr = 0.006
    blocked = True

    def check(self, config: AdapterConfig, sites: Sequence[Site]) -> None:
        super().check(config, sites)
        multiple = config.dim * 2 ** (config.factors - 1)
        for site in sites:
            if site.in_features % multiple or config.dim % 2:
                what = f"{config.factors} butterfly factors of even blocks b={config.dim}"
                need = f"need a width that is a multiple of {multiple}; {site.name} has {site.in_features}"
                raise InputError(f"adapter.factors={config.factors}: {what} (adapter.method=boft) {need}")

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return config.factors * parameters(sites, config.dim, config.side)

    def flop(self, config: AdapterConfig, sites: Sequence[Site]) -> int | None:
        each = super().flop(config, sites)
        return None if each is None else config.factors * each

    def label(self, config: AdapterConfig) -> str:
        return f"boft-b{config.dim}m{config.factors}"

    def matched(self, config: AdapterConfig, sites: Sequence[Site], budget: int) -> AdapterConfig:
        """Factors of half blocks; three of b = 2 have the parameters of b = 4."""
        found = super().matched(config, sites, budget)
        return replace(found, dim=max(2, config.dim // 2), factors=3 if config.dim == 4 else 2)

    def layer(self, config: AdapterConfig, site: Site, base: Any) -> Any:
        from qrun.adapters.layers import ButterflyLinear

        return ButterflyLinear(base, config.dim, config.factors)


METHOD = Boft()
