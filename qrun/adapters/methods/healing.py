"""The factors of a compressed model, trained further (CompactifAI, arXiv:2401.14109)."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError

if TYPE_CHECKING:
    from qrun.adapters.linear import Adapter


class Healing(Method):
    """A compressed model's own factors (arXiv:2401.14109)."""

    lr = 0.0005
    control = False

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> None:
        return None

    def build(self, model: Any, sites: Sequence[Site], config: AdapterConfig, folder: str | Path | None) -> "Adapter":
        """A sensitivity profile leaves some sites dense; those are not touched."""
        from qrun.adapters.layers import wrapped
        from qrun.compression.factors import FactoredLinear, read_factors

        factors = read_factors(folder)
        factored = [site for site in sites if site.name in factors]
        if not factored:
            why = f"{sites[0].name} of this model is not factored"
            raise InputError(f"adapter.method=healing: {why}; healing needs the folder of a compressed model")
        for site in factored:
            size = [prod(core.shape[axis] for core in factors[site.name]) for axis in (1, 2)]
            if size != [site.out_features, site.in_features]:
                own = f"{site.name} is {site.out_features} x {site.in_features}"
                raise InputError(f"{folder}: cores of a weight {size[0]} x {size[1]}, but {own}; compress it again")
        return wrapped(model, factored, config, lambda site, base: FactoredLinear(base, factors[site.name]))


METHOD = Healing()
