"""One unconstrained matrix I + M per site, M [in, in]: the upper bound of everything that acts before a projection."""

from collections.abc import Sequence
from typing import Any

from qrun.adapters.methods.base import OwnMethod
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig


class Dense(OwnMethod):
    """One unconstrained matrix before each projection."""

    lr = 0.001

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return sum(site.in_features**2 for site in sites)

    def flop(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return 2 * self.count(config, sites)

    def layer(self, config: AdapterConfig, site: Site, base: Any) -> Any:
        from qrun.adapters.layers import BlockLinear

        return BlockLinear(base, site.in_features)


METHOD = Dense()
