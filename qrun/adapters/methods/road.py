"""Scaled rotations of pairs of output channels (RoAd, arXiv:2409.00119), PEFT's layer: an angle and a scale a pair.

road_1 shares them within a pair, road_2 has them for each channel, road_4 for each entry of the pair's matrix. Pairs
are half a group apart; the group size changes nothing else, and must divide the output width.

lr: best validation loss on nano, one v_proj, road_1, 30 steps, seed 100, of 0.002, 0.006 (-0.0007), 0.02 only.
"""

from collections.abc import Sequence
from typing import Any

from qrun.adapters.methods.base import Method
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError

PER_CHANNEL = {"road_1": 1, "road_2": 2, "road_4": 4}  # parameters


class Road(Method):
    """Rotations and scales of pairs of output channels, RoAd (arXiv:2409.00119)."""

    lr = 0.006
    options = {"variant": "road_1", "group_size": 2}  # noqa: RUF012

    def check(self, config: AdapterConfig, sites: Sequence[Site]) -> None:
        variant, group = config.options["variant"], config.options["group_size"]
        if variant not in PER_CHANNEL:
            raise InputError(f"adapter.options.variant={variant}: use {', '.join(PER_CHANNEL)}")
        for site in sites:
            if group < 2 or group % 2 or site.out_features % group:
                possible = f"give an even number that divides the output width {site.out_features} of {site.name}"
                raise InputError(f"adapter.options.group_size={group}: {possible}")

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        return PER_CHANNEL[config.options["variant"]] * sum(site.out_features for site in sites)

    def label(self, config: AdapterConfig) -> str:
        return "road" + config.options["variant"].removeprefix("road_")

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        import peft

        return peft.RoadConfig(**config.options, target_modules=targets)


METHOD = Road()
