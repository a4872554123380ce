"""Which projections are adapted, and how large that is. Plain arithmetic on a model's shape: no weights, no torch.

sites(shape)                        all sites in order, e.g. layers.0.self_attn.q_proj
select(sites, projections, layers)  those of these words; InputError if none or out of range
adapted(shape, adapter)             those an AdapterConfig names, `count` of them if it says so
parameters(selected, dim, side)     sum over sites of (width / b) * b(b-1)/2
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qrun.config.schema import PROJECTIONS, AdapterConfig, ShapeConfig, Side
from qrun.errors import InputError

GOLDEN = (math.sqrt(5) - 1) / 2
# a site's name, its layer and its projection as groups
PLACE = rf"layers\.(0|[1-9][0-9]{{0,5}})\.(?:self_attn|mlp)\.({'|'.join(PROJECTIONS)})"


@dataclass(frozen=True)
class Site:
    """One adapted projection W: in_features -> out_features."""

    layer: int
    projection: str
    in_features: int
    out_features: int

    @property
    def name(self) -> str:
        """Module path below `model.`, as in the hub's checkpoints."""
        block = "mlp" if self.projection in PROJECTIONS[4:] else "self_attn"
        return f"layers.{self.layer}.{block}.{self.projection}"

    def width(self, side: Side) -> int:
        """Channels that the adapter acts on."""
        return self.in_features if side is Side.input else self.out_features


def sites(shape: ShapeConfig) -> list[Site]:
    """All projections of a Llama-type decoder: 7 per layer, in the order of the forward pass."""
    d, ffn = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    widths = [(d, q), (d, kv), (d, kv), (q, d), (d, ffn), (d, ffn), (ffn, d)]
    named = list(zip(PROJECTIONS, widths, strict=True))
    return [Site(layer, name, *width) for layer in range(shape.num_hidden_layers) for name, width in named]


def select(available: Sequence[Site], projections: Sequence[str], layers: Sequence[str]) -> list[Site]:
    """Sites named by `adapter.projections` and `adapter.layers` (words as normalised by the schema)."""
    count = 1 + max(site.layer for site in available)
    chosen: set[int] = set()
    for word in layers:
        if word in ("all", "first", "last"):
            chosen |= {"all": set(range(count)), "first": {0}, "last": {count - 1}}[word]
        else:
            first, _, last = word.partition("-")
            if int(last or first) >= count:
                raise InputError(f"adapter.layers={word}: the model has layers 0-{count - 1}")
            chosen |= set(range(int(first), int(last or first) + 1))
    selected = [site for site in available if site.layer in chosen and site.projection in projections]
    if not selected:
        given = f"adapter.projections={list(projections)}, adapter.layers={list(layers)}"
        raise InputError(f"{given}: no projection of the model matches")
    return selected


def adapted(shape: ShapeConfig, adapter: AdapterConfig) -> list[Site]:
    """The adapter's sites, in the order of the forward pass. Raises InputError as `select` does, and for more sites
    than there are."""
    selected = select(sites(shape), adapter.projections, adapter.layers)
    if adapter.count is None:
        return selected
    if adapter.count > len(selected):
        raise InputError(f"adapter.count={adapter.count}: projections and layers choose {len(selected)} sites")
    return spread(selected, adapter.count, adapter.order)


def spread(selected: Sequence[Site], count: int, number: int = 0) -> list[Site]:
    """`count` of these sites, each larger set holding the smaller: the last v_proj (else the last site), then those
    whose index from there, times the golden ratio modulo 1, is least. So every set is spread evenly over depth and
    kinds of projections (three-distance theorem). Order `number` begins at the site that order 0 adds after so many."""

    def order(start: int) -> list[int]:
        return sorted(range(len(selected)), key=lambda i: (i - start) * GOLDEN % 1)

    first = max((i for i, site in enumerate(selected) if site.projection == "v_proj"), default=len(selected) - 1)
    chosen = order(order(first)[number % len(selected)])[:count]
    return [selected[i] for i in sorted(chosen)]


def check_divides(selected: Sequence[Site], dim: int, side: Side) -> None:
    """Raise InputError naming the first site whose width b does not divide, with the block dimensions that all
    sites allow."""
    for site in selected:
        width = site.width(side)
        if width % dim:
            common = [str(b) for b in range(2, 129) if all(s.width(side) % b == 0 for s in selected)]
            possible = f"block dimensions that divide every chosen site: {', '.join(common)}"
            possible += "" if common else "none, choose fewer projections"
            where = f"the {side.value} width {width} of {site.name}"
            raise InputError(f"adapter.dim={dim}: does not divide {where}; {possible}")


def parameters(selected: Sequence[Site], dim: int, side: Side) -> int:
    """Trainable parameters of Cayley blocks: (width / b) blocks of b(b-1)/2 each; 6,144 for Llama's v_proj at b = 4."""
    return sum(site.width(side) // dim * dim * (dim - 1) // 2 for site in selected)
