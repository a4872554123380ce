"""Householder reflections before the weight, W H_1 ... H_r (HRA, arXiv:2405.17484), PEFT's layer.

Reflections start in equal pairs, which cancel: an odd rank has no identity start and is refused. PEFT's Gram-Schmidt
form (apply_GS) is left out: it divides by the length of a difference of equals and so does not start as the identity.

lr: best validation loss on nano, one v_proj, rank 2, 30 steps, seed 100, of 0.01, 0.04, 0.1, 0.2 (-0.0029), 0.4.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError


class Hra(Method):
    """Householder reflection adaptation (arXiv:2405.17484)."""

    lr = 0.2

    def check(self, config: AdapterConfig, sites: Sequence[Site]) -> None:
        if config.rank % 2:
            raise InputError(
                f"adapter.rank={config.rank}: reflections start in pairs; adapter.method=hra needs an even rank"
            )

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return config.rank * sum(site.in_features for site in sites)

    def label(self, config: AdapterConfig) -> str:
        return f"hra-r{config.rank}"

    def steps(self, lr: float, clip: float, config: AdapterConfig, exponent: float) -> tuple[float, float]:
        """PEFT draws vectors of length ~ sqrt(2 / rank), and a reflection turns by its step relative to that."""
        return lr * (2 / config.rank) ** 0.5, clip

    def matched(self, config: AdapterConfig, sites: Sequence[Site], budget: int) -> AdapterConfig:
        pairs = max(1, round(budget / sum(2 * site.in_features for site in sites)))
        return replace(super().matched(config, sites, budget), rank=2 * pairs)

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        import peft

        return peft.HRAConfig(r=config.rank, target_modules=targets)


METHOD = Hra()
