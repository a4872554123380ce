"""The paper's adapter: one orthogonal b x b block per slice of b channels (arXiv:2605.05914)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.sites import Site, parameters
from qrun.config.schema import AdapterConfig

if TYPE_CHECKING:
    from qrun.adapters.forms import Form


class Cayley(BlockMethod):
    """Block-diagonal Cayley adapter (arXiv:2605.05914)."""

    control = False

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return parameters(sites, config.dim, config.side)

    def label(self, config: AdapterConfig) -> str:
        return f"b{config.dim}" + ("-signed" if config.sign_constrained else "")

    def form(self, config: AdapterConfig, site: str) -> "Form":
        from qrun.adapters.forms import CayleyForm

        return CayleyForm()


METHOD = Cayley()
