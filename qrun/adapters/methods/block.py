"""The paper's blocks without their constraint: I + M, M free [b, b]."""

from collections.abc import Sequence
from typing import Any

from qrun.adapters.methods.base import OwnMethod
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig


class Block(OwnMethod):
    """Unconstrained b x b blocks I + M."""

    lr = 0.01
    blocked = True

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return config.dim * sum(site.in_features for site in sites)

    def layer(self, config: AdapterConfig, site: Site, base: Any) -> Any:
        from qrun.adapters.layers import BlockLinear

        return BlockLinear(base, config.dim)


METHOD = Block()
