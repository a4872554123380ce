"""A Cayley rotation among a weight's r largest singular directions (PSOFT, openreview FSHrinMArK), PEFT's layer.

W + B (R - I) A with frozen A [r, in] and B [out, r] from the SVD of W, R [r, r] orthogonal, and, with
adapter.options.scales, a trained scale before and behind it. A and B are not saved: another SVD routine (a GPU's) may
turn singular vectors of close values, so read a trained PSOFT on the kind of device that trained it.

lr: best validation loss on nano, one v_proj, rank 23, 30 steps, seed 100, of 0.0005, 0.005 (-0.0005), 0.01 only.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError


class Psoft(Method):
    """Principal-subspace orthogonal fine-tuning, PSOFT (openreview FSHrinMArK)."""

    lr = 0.005
    options = {"scales": True}  # noqa: RUF012

    def check(self, config: AdapterConfig, sites: Sequence[Site]) -> None:
        for site in sites:
            most = min(site.in_features, site.out_features)
            if not 2 <= config.rank <= most:
                raise InputError(
                    f"adapter.rank={config.rank}: adapter.method=psoft needs 2 to {most}, the rank of {site.name}"
                )

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        rank = config.rank
        return len(sites) * (rank * (rank - 1) // 2 + 2 * rank * config.options["scales"])

    def label(self, config: AdapterConfig) -> str:
        return f"psoft-r{config.rank}"

    def steps(self, lr: float, clip: float, config: AdapterConfig, exponent: float) -> tuple[float, float]:
        """R is one block of b = rank, and shrinks its steps as the adapter's blocks do."""
        return lr * (4 / config.rank) ** exponent, clip

    def matched(self, config: AdapterConfig, sites: Sequence[Site], budget: int) -> AdapterConfig:
        found = super().matched(config, sites, budget)
        most = min(min(site.in_features, site.out_features) for site in sites)
        sized = [replace(found, rank=rank) for rank in range(2, most + 1)]
        return min(sized, key=lambda size: abs(self.count(size, sites) - budget))

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        import peft

        scales = config.options["scales"]
        return peft.PsoftConfig(
            r=config.rank, psoft_alpha=config.rank, psoft_mag_a=scales, psoft_mag_b=scales, target_modules=targets
        )


METHOD = Psoft()
