"""PEFT's orthogonal fine-tuning with the exact Cayley map: the same adapter by other hands (arXiv:2306.07280)."""

from collections.abc import Sequence
from typing import Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site, parameters
from qrun.config.schema import AdapterConfig


class Oft(Method):
    """PEFT's OFT with the exact Cayley map (arXiv:2306.07280)."""

    blocked = True

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return parameters(sites, config.dim, config.side)

    def steps(self, lr: float, clip: float, config: AdapterConfig, exponent: float) -> tuple[float, float]:
        """PEFT's parameter is -K/2: the same step is half as long, its gradient twice as large."""
        lr, clip = super().steps(lr, clip, config, exponent)
        return lr / 2, clip * 2

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        import peft

        return peft.OFTConfig(oft_block_size=config.dim, r=0, use_cayley_neumann=False, target_modules=targets)


METHOD = Oft()
