"""Low-rank adaptation, PEFT's (arXiv:2106.09685); alpha = rank, so that B A is added as it is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig


class Lora(Method):
    """Low-rank adaptation (arXiv:2106.09685)."""

    lr = 0.02

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return config.rank * sum(site.in_features + site.out_features for site in sites)

    def flop(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return 2 * self.count(config, sites)

    def label(self, config: AdapterConfig) -> str:
        return f"lora-r{config.rank}"

    def steps(self, lr: float, clip: float, config: AdapterConfig, exponent: float) -> tuple[float, float]:
        return lr / config.rank**0.5, clip

    def matched(self, config: AdapterConfig, sites: Sequence[Site], budget: int) -> AdapterConfig:
        per_rank = sum(site.in_features + site.out_features for site in sites)
        return replace(super().matched(config, sites, budget), rank=max(1, round(budget / per_rank)))

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        import peft

        return peft.LoraConfig(r=config.rank, lora_alpha=config.rank, lora_dropout=0.0, target_modules=targets)


METHOD = Lora()
