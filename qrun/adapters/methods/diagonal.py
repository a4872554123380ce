"""One factor per input channel: PEFT's (IA)^3 on inputs (arXiv:2205.05638)."""

from collections.abc import Sequence
from typing import Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig


class Diagonal(Method):
    """One factor per input channel, (IA)^3 (arXiv:2205.05638)."""

    lr = 0.02

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return sum(site.in_features for site in sites)

    def flop(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return self.count(config, sites)

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        import peft

        return peft.IA3Config(target_modules=targets, feedforward_modules=targets)  # feed-forward: scales the input


METHOD = Diagonal()
