"""The paper's adapter: one orthogonal b x b block per slice of b channels (arXiv:2605.05914)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site, parameters
from qrun.config.schema import AdapterConfig

if TYPE_CHECKING:
    from qrun.adapters.linear import Adapter


class Cayley(Method):
    """Block-diagonal Cayley adapter (arXiv:2605.05914)."""

    blocked = circuits = True
    control = False

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return parameters(sites, config.dim, config.side)

    def label(self, config: AdapterConfig) -> str:
        return f"b{config.dim}" + ("-signed" if config.sign_constrained else "")

    def build(self, model: Any, sites: Sequence[Site], config: AdapterConfig, folder: str | Path | None) -> "Adapter":
        from qrun.adapters.linear import attach

        return attach(model, sites, config)


METHOD = Cayley()
