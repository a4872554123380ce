"""Low-rank adaptation, PEFT's (arXiv:2106.09685); alpha = rank, so that B A is added as it is."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from qrun.adapters.methods.base import EQUAL, Method
from qrun.adapters.sites import Site
from qrun.config.schema import PROJECTIONS, AdapterConfig


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
        """At all the sites if the count can lie within EQUAL of the budget there, else at the most projections of them
        where it can, else as near as it gets. With adapter.count, which fewer projections would spread over other
        sites, at all of them."""
        names = [name for name in PROJECTIONS if name in {site.projection for site in sites}]
        found = []
        least = 1 if config.count is None else len(names)
        for chosen in (c for size in range(len(names), least - 1, -1) for c in combinations(names, size)):
            per_rank = sum(s.in_features + s.out_features for s in sites if s.projection in chosen)
            rank = max(1, round(budget / per_rank))
            apart = abs(math.log(rank * per_rank / budget))
            found.append((apart > math.log(EQUAL), -len(chosen), apart, rank, list(chosen)))
        equal = [each for each in found if not each[0]]
        *_, rank, kept = min(equal) if equal else min(found, key=lambda each: (each[2], each[1]))
        own = super().matched(config, sites, budget)
        return replace(own, rank=rank, projections=kept if config.count is None else own.projections)

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        import peft

        return peft.LoraConfig(r=config.rank, lora_alpha=config.rank, lora_dropout=0.0, target_modules=targets)


METHOD = Lora()
