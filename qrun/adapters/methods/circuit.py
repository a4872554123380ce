"""Blocks parameterised directly as circuits of k CZ on a line: n + 2 k angles a block, b = 2^n (adapters/circuit.py).

adapter.options.czs is k, an even number (the circuit starts as a palindrome, the identity); b = 2 is one RY.

lr: best validation loss on nano, all sites, b = 8 with 6 CZ (steps of 4/9 of it), 30 steps, seed 100, of 0.003, 0.006,
0.012 (-0.0258), 0.024 only.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.sites import Site
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError

if TYPE_CHECKING:
    from qrun.adapters.forms import Form


class Circuit(BlockMethod):
    """Block-diagonal adapter of RY-CZ circuits with a fixed number of CZ."""

    lr = 0.012
    options = {"czs": 6}  # noqa: RUF012

    def check(self, config: AdapterConfig, sites: Sequence[Site]) -> None:
        from qrun.quantum.encoding import qubits

        super().check(config, sites)
        czs = config.options["czs"]
        if qubits(config.dim) > 1 and (czs < 2 or czs % 2):
            raise InputError(f"adapter.options.czs={czs}: circuits start as palindromes; give an even number from 2")

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int:
        angles = config.dim.bit_length() - 1 + 2 * self.czs(config)
        return angles * sum(site.width(config.side) // config.dim for site in sites)

    def czs(self, config: AdapterConfig) -> int:
        """CZ of one block."""
        return int(config.options["czs"]) if config.dim > 2 else 0

    def label(self, config: AdapterConfig) -> str:
        return f"circuit-b{config.dim}k{self.czs(config)}" + ("-signed" if config.sign_constrained else "")

    def steps(self, lr: float, clip: float, config: AdapterConfig, exponent: float) -> tuple[float, float]:
        """Falls with the n + k directions that angles turn a block in at the start, which may add up; lr is stated for
        four, b = 4 with 2 CZ."""
        directions = config.dim.bit_length() - 1 + self.czs(config)
        return lr * (4 / directions) ** exponent, clip

    def matched(self, config: AdapterConfig, sites: Sequence[Site], budget: int) -> AdapterConfig:
        """The even number of CZ whose n + 2 k is nearest; an adapter of this method keeps its own."""
        found = super().matched(config, sites, budget)
        if config.method == self.name:
            return found
        each = budget / sum(site.width(config.side) // config.dim for site in sites)
        czs = max(2, 2 * round((each - config.dim.bit_length() + 1) / 4))
        return replace(found, options={"czs": czs})

    def form(self, config: AdapterConfig, site: str) -> "Form":
        from qrun.adapters.circuit import CircuitForm

        return CircuitForm(self.czs(config), site)


METHOD = Circuit()
