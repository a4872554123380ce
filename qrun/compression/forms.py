"""How weights are factored, in numbers alone: which bonds there are, what they cost, what a ratio allows."""

import math
from dataclasses import dataclass

from qrun.adapters.sites import sites
from qrun.config.schema import CompressionConfig, CompressionKind, ShapeConfig
from qrun.errors import InputError


@dataclass(frozen=True)
class Form:
    """How weights are factored: kind, and for mpo the number of cores."""

    kind: CompressionKind
    cores: int = 2

    def dims(self, out: int, width: int) -> list[tuple[int, int]]:
        """(o_k, i_k) of the cores; one core of SVD's middle bond is (out, 1), (1, in)."""
        if self.kind is CompressionKind.svd:
            return [(out, 1), (1, width)]
        return list(zip(balanced(out, self.cores), balanced(width, self.cores), strict=True))

    def full(self, out: int, width: int) -> list[int]:
        """Full rank of every bond."""
        sizes = [o * i for o, i in self.dims(out, width)]
        return [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes))]

    def count(self, out: int, width: int, bond: int) -> int:
        """Parameters at a bond."""
        bonds = [1, *(min(bond, full) for full in self.full(out, width)), 1]
        cores = zip(self.dims(out, width), bonds[:-1], bonds[1:], strict=True)
        return sum(left * o * i * right for (o, i), left, right in cores)

    def bond_for(self, out: int, width: int, ratio: float) -> int:
        """Largest bond whose parameters are at most `ratio` of the dense weight; InputError if even bond 1 has more."""
        most, budget = max(self.full(out, width)), ratio * out * width
        if self.count(out, width, 1) > budget:
            least = self.count(out, width, 1) / (out * width)
            why = f"a {out} x {width} weight has at least {least:.3f} of its parameters at bond 1"
            raise InputError(f"compression.ratio={ratio:g}: cannot be reached; {why}")
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.count(out, width, middle) <= budget else (low, middle - 1)
        return low

    def check_bond(self, out: int, width: int, bond: int, where: str) -> None:
        """Raise InputError for a bond above full rank, which would truncate nothing."""
        most = max(self.full(out, width))
        if bond > most:
            form = f"{out} x {width}, {self.kind.value}, {self.cores} cores"
            raise InputError(f"compression.bond={bond}: above the full rank {most} of {where} ({form})")


def balanced(size: int, parts: int) -> list[int]:
    """`size` as a product of `parts` factors, each the divisor nearest to the even share of what is left."""
    factors = []
    for left in range(parts, 1, -1):
        share = size ** (1 / left)
        best = min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: abs(math.log(d / share)))
        factors.append(best)
        size //= best
    return [*factors, size]


def check(config: CompressionConfig, shape: ShapeConfig) -> None:
    """InputError for a bond above full rank or a ratio out of reach, before any weight is loaded."""
    form = Form(config.kind, config.cores)
    for site in sites(shape):
        if config.bond is not None:
            form.check_bond(site.out_features, site.in_features, config.bond, site.name)
        else:
            form.bond_for(site.out_features, site.in_features, config.ratio)
