"""Circuits behind the seam of adapters (linear.Executor): a device computes Q x.

An executor takes blocks Q [B, b, b] and slices x [N, B, b] and returns estimates of Q_j x_nj, same shape as the slices.
In training and on the exact device that is a batched matrix product; any other device gets the same call.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qrun.adapters.cayley import rotate
from qrun.config.schema import Allocation, EstimateConfig, Estimator, Rates, Sign
from qrun.errors import InputError
from qrun.quantum import resident
from qrun.quantum.circuits import with_reference
from qrun.quantum.devices.base import Device
from qrun.quantum.encoding import Floats, normalise, qubits
from qrun.quantum.estimates import (
    REFERENCE,
    REPEATS,
    SLICES,
    beside_reference,
    fitted,
    from_reference,
    from_two_settings,
    inverse_confusion,
    known_slices,
    left_open,
    magnitudes,
    posterior,
    rotation,
    soft,
    spread,
    tally,
    with_signs,
)
from qrun.quantum.estimates import Rates as Known
from qrun.quantum.plan import QUICK_S
from qrun.quantum.sampling import stream_key
from qrun.quantum.synthesis import Written
from qrun.rows import current


def exact(blocks: Tensor, slices: Tensor) -> Tensor:
    """Noise-free product Q_j x_nj."""
    return rotate(slices.flatten(1), blocks.to(slices.dtype)).view(slices.shape)


class Steps(NamedTuple):
    """From slices to units and from frequencies to estimates, on arrays, or on tensors that stay on a GPU."""

    normalise: Callable[..., Any] = normalise
    magnitudes: Callable[..., Any] = magnitudes
    with_signs: Callable[..., Any] = with_signs
    from_two_settings: Callable[..., Any] = from_two_settings
    tally: Callable[..., tuple[float, float, float, float, float]] = tally
    left_open: Callable[..., Any] = left_open


ARRAYS = Steps()
TENSORS = Steps(*(getattr(resident, name) for name in Steps._fields))


SAMPLED = 64  # rows of a call that the error of counting is worked out for


@dataclass
class Statistics:
    """Sums over everything an executor ran; `summary` makes rates of them."""

    circuits: int = 0
    calibration: int = 0  # circuits with known outcomes
    kept: float = 0.0  # sum over blocks and settings of 1 - depolarising rate, as calibrated
    calibrated: int = 0  # blocks and settings that were
    slices: int = 0  # that are not zero
    empty: int = 0  # zero slices, for which no circuit ran
    seconds: float = 0.0
    flips: float = 0.0  # channels whose sign the rotation changes
    channels: int = 0
    error: float = 0.0  # sum of |estimate - Q x|^2, of sign-constrained adapters |estimate - sign(x) |Qx||^2
    counting: float = 0.0  # of that, what so many shots make on average, to first order
    power: float = 0.0  # sum of |x|^2
    angle: float = 0.0  # sum of the angle between x and Q x, radians

    def add(
        self, slices: float, flips: float, error: float, power: float, angle: float, settings: int, count: int,
        channels: int, open_: float,
    ) -> None:  # fmt: skip
        """What `tally` found in so many slices of so many channels in all, and the share of their power that counting
        leaves open."""
        self.slices += int(slices)
        self.circuits += int(slices) * settings
        self.empty += count - int(slices)
        self.flips += int(flips)
        self.channels += channels
        self.error += error
        self.counting += open_ * power
        self.power += power
        self.angle += angle

    def summary(self) -> dict[str, float]:
        """Fraction of sign flips, relative error (root mean square), mean rotation angle in degrees, circuits
        and seconds."""
        return {
            "circuits": self.circuits, "zero_slices": self.empty, "circuit_seconds": self.seconds,
            "calibration_circuits": self.calibration, "survival": self.kept / max(self.calibrated, 1),
            "sign_flips": self.flips / max(self.channels, 1),
            "relative_error": (self.error / max(self.power, 1e-300)) ** 0.5,
            "counting_error": (self.counting / max(self.power, 1e-300)) ** 0.5,
            "rotation_degrees": float(np.degrees(self.angle / max(self.slices, 1))),
        }  # fmt: skip


class CircuitExecutor:
    """Estimates from a device, one stream of shots per site, each position of a text with its own place in it
    (qrun/rows.py): the same seed gives the same bits for any batch and any split. `constrained` adapters are meant to
    give sign(x) |Qx|."""

    def __init__(
        self, device: Device, sign: Sign, seed: int, constrained: bool = False,
        estimate: EstimateConfig | None = None, allocation: Allocation = Allocation.equal,
    ) -> None:  # fmt: skip
        if constrained and sign is not Sign.input:
            how = "its forward pass is sign(x) |Qx|; use signs=input"
            raise InputError(f"signs={sign.value}: a sign-constrained adapter has no other signs, {how}")
        self.device, self.sign, self.seed, self.constrained = device, sign, seed, constrained
        self.estimate, self.allocation = estimate or EstimateConfig(), allocation
        self.steps = TENSORS if device.accelerator else ARRAYS
        self.statistics = Statistics()

    @property
    def settings(self) -> int:
        """Circuits of a slice."""
        return 2 if self.sign is Sign.two_settings else 1

    def cost(self, dim: int, blocks: Sequence[int]) -> dict[str, float]:
        """Shots of a slice in all its settings, and estimated QPU seconds of a token with so many blocks a site: IBM's
        quick form, blocks packed on the noise's chip or the 156-qubit lattice, jobs and calibration aside."""
        shots, packed = (self.device.shots or 0) * self.settings, self.device.wiring.packed(dim)
        return {"shots": shots, "qpu_seconds": shots * QUICK_S * sum(math.ceil(count / packed) for count in blocks)}

    def site(
        self, name: str, effect: Tensor | None = None, written: Callable[[], Written | None] | None = None
    ) -> "SiteExecutor":
        return SiteExecutor(self, name, effect, written)


@dataclass
class Ready:
    """A site's blocks [B, b, b], what the device made of them for each setting, and what calibration found there."""

    blocks: Floats
    prepared: list[Any]
    rates: Sequence[Known | None]


class SiteExecutor:
    """The executor of one site: keeps its prepared blocks and counts its circuits."""

    def __init__(
        self, parent: CircuitExecutor, name: str, effect: Tensor | None = None,
        written: Callable[[], Written | None] | None = None,
    ) -> None:  # fmt: skip
        self.parent, self.effect, self.written = parent, effect, written
        if (parent.sign is Sign.reference) != parent.device.wiring.reference:
            raise AssertionError("signs=reference and circuits with a reference go together")
        settings = ("", "/turned")[: parent.settings]
        self.keys = [stream_key(parent.seed, f"{name}{setting}") for setting in settings]
        self.rows = 0  # seen without a number
        self._ready: tuple[Tensor, Ready] | None = None

    def prepare(self, blocks: Tensor) -> Ready:
        """Synthesis and readout matrices, again only when the blocks change; rates come with the first counts."""
        if self._ready is None or not (self._ready[0] is blocks or torch.equal(self._ready[0], blocks)):
            exact_blocks = blocks.detach().double().cpu().numpy()
            own = self.written() if self.written else None
            device, settings = self.parent.device, range(len(self.keys))
            prepared = [device.prepare(exact_blocks, turned=bool(i), written=own) for i in settings]
            self._ready = (blocks, Ready(exact_blocks, prepared, []))
        return self._ready[1]

    def run(self, ready: Ready, units: Any, mask: Any, numbers: NDArray[np.int64]) -> list[Any]:
        """Outcomes of every setting; the first time with the circuits that calibrate it, in the same jobs."""
        device = self.parent.device
        settings = list(zip(ready.prepared, self.keys, strict=True))
        if self.parent.sign is Sign.reference:
            units = beside_reference(units, ready.blocks)
        requests = [(made, units, mask, key, numbers) for made, key in settings]
        if ready.rates or self.parent.estimate.kind is Estimator.sqrt:
            return device.run_all(requests)
        known = known_slices(*units.shape[1:])
        every, positions = np.ones(known.shape[:2], bool), np.arange(SLICES)
        slices = torch.as_tensor(known).to(units) if isinstance(units, Tensor) else known.astype(units.dtype)
        tests = [(made, slices, every, stream_key(key, "calibration"), positions) for made, key in settings]
        outcomes = device.run_all(requests + tests)
        ready.rates = self.calibrated(ready, known, [_array(outcome) for outcome in outcomes[len(requests) :]])
        return outcomes[: len(requests)]

    def calibrated(self, ready: Ready, known: Floats, counts: list[Floats]) -> list[Known]:
        """Rates of every setting from the counts of known slices [SLICES, B, b]."""
        device, seen, dim = self.parent.device, self.parent.statistics, known.shape[-1]
        measured = self.parent.estimate.rates is Rates.measured
        repeated = REPEATS * device.shots if device.shots and measured else None
        blocks = with_reference(ready.blocks) if self.parent.sign is Sign.reference else ready.blocks
        found = []
        for made, outcome, turn in zip(ready.prepared, counts, (np.eye(dim), rotation(qubits(dim))), strict=False):
            inverse = inverse_confusion(device.confusion(made, dim, repeated, self.parent.seed))
            inverse = np.broadcast_to(inverse, (len(blocks), *inverse.shape[1:]))
            expected = np.square(np.einsum("jab,njb->nja", turn @ blocks, known))
            rates = fitted(outcome, expected, inverse, device.shots)
            seen.kept += float(rates.kept.sum())
            seen.calibrated += len(rates.kept)
            seen.calibration += outcome.shape[0] * outcome.shape[1]
            found.append(rates)
        return found

    def shares(self, norms: Tensor) -> Tensor:
        """Where slices of norms [N, B] run, or with allocation=effect the shots of each: as many in all for every token
        as equal ones, at least an eighth of those for a slice that is not zero."""
        real, shots = norms > 0, self.parent.device.shots
        if self.parent.allocation is Allocation.equal or shots is None:
            return real
        weight = norms.double() if self.effect is None else norms.double() * self.effect.to(norms.device).double()
        least = -(-shots // 8)
        spare = (shots - least) * real.sum(-1, keepdim=True)
        upto = (spare * weight.cumsum(-1) / weight.sum(-1, keepdim=True).clamp(min=1e-300)).round().long()
        return torch.diff(upto, dim=-1, prepend=torch.zeros_like(upto[:, :1])) + least * real

    def estimates(self, ready: Ready, outcomes: list[Any], units: Any, product: Any, shares: Any) -> Any:
        """Unit estimates [N, B, b] of Q x/|x|; `product` is needed by the control of exact signs alone."""
        parent, steps = self.parent, self.parent.steps
        rates = ready.rates or [None] * len(outcomes)
        sizes = [steps.magnitudes(outcome, known) for outcome, known in zip(outcomes, rates, strict=True)]
        if parent.estimate.leans:
            leaning = self._leaning(ready, _array(sizes[0]), _array(units))
            return torch.as_tensor(leaning).to(units) if isinstance(units, Tensor) else leaning
        if parent.sign is Sign.two_settings:
            own = parent.allocation is not Allocation.equal and parent.device.shots is not None
            shots = shares if own else parent.device.shots
            return steps.from_two_settings(sizes[0], sizes[1], units, rates[0], shots)
        if parent.sign is Sign.reference:
            return from_reference(sizes[0])
        return steps.with_signs(sizes[0], units if parent.sign is Sign.input else product)

    def _leaning(self, ready: Ready, size: Floats, units: Floats) -> Floats:
        """Estimates drawn towards x."""
        sigma, rates = spread(ready.blocks).astype(units.dtype), ready.rates[0]
        if self.parent.estimate.kind is Estimator.soft:
            return soft(size, units, sigma)
        assert rates is not None
        kept = rates.kept[:, None].astype(units.dtype)
        return posterior(size, units, sigma, 1 / (4 * (self.parent.device.shots or 10**9) * kept**2))

    @torch.no_grad()
    def __call__(self, blocks: Tensor, slices: Tensor) -> Tensor:
        numbers = current()
        if numbers is None:  # token by token, as text is generated
            numbers = np.arange(self.rows, self.rows + len(slices))
            self.rows += len(slices)
        if (numbers >= 0).all():
            return self._estimates(blocks, slices, numbers).to(slices.device, slices.dtype)
        real = torch.from_numpy(np.flatnonzero(numbers >= 0)).to(slices.device)  # padding runs no circuits
        out = torch.zeros_like(slices)
        out[real] = self._estimates(blocks, slices[real], numbers[numbers >= 0]).to(slices.device, slices.dtype)
        return out

    def _estimates(self, blocks: Tensor, slices: Tensor, numbers: NDArray[np.int64]) -> Tensor:
        parent, started = self.parent, time.perf_counter()
        device, ready = parent.device, self.prepare(blocks)
        double = np.dtype(device.dtype) == np.float64
        x = slices.detach().to(device.accelerator or "cpu", torch.float64 if double else torch.float32)
        product = exact(blocks.to(x.device), x)
        vectors, wanted = (x, product) if device.accelerator else (x.numpy(), product.numpy())
        units, norms = parent.steps.normalise(vectors)
        there = self.shares(torch.as_tensor(norms))
        shares: Any = there if device.accelerator else there.numpy()
        outcomes = self.run(ready, units, shares, numbers)
        estimates = self.estimates(ready, outcomes, units, wanted, shares)
        estimates *= norms[..., None]
        found = torch.as_tensor(estimates)
        size = torch.as_tensor(norms)
        some = slice(None, None, max(1, -(-len(found) // SAMPLED)))
        open_ = self._open(ready, found[some] / size[some].clamp(min=1e-12)[..., None], there[some])
        power = size[some].square().double()
        share = float((open_ * power).sum() / power.sum().clamp(min=1e-300))
        sums = parent.steps.tally(vectors, wanted, estimates, norms, parent.constrained)
        parent.statistics.add(*sums, len(outcomes), size.numel(), x.numel(), share)
        parent.statistics.seconds += time.perf_counter() - started
        return found

    def _open(self, ready: Ready, units: Tensor, shares: Tensor) -> Tensor:
        """Mean square error [N, B] of unit estimates that counting leaves. A frequency f of probability p scatters by
        s = sqrt(f (1 - f) / shots) / kept, and sqrt(p) by s^2 / (4 p) where p is larger than s, by 0.4 s where it is 0.
        Precisions of two settings add up. A prior makes it smaller, inverted readout errors a little larger."""
        sign, shots, dim = self.parent.sign, self.parent.device.shots, units.shape[-1]
        if shots is None:
            return torch.zeros(units.shape[:2], device=units.device)
        rates = (ready.rates or [None])[0]
        kept = torch.as_tensor(1.0 if rates is None else rates.kept[:, None]).to(units)
        own = shots if shares.dtype == torch.bool else shares.clamp(min=1)[..., None].to(units)
        if sign is Sign.reference:  # y is half a difference of roots that are sqrt(2 (1 + c^2)) times as long
            return (dim * (1 + REFERENCE**2) / (4 * own * kept**2)).expand(*units.shape[:2], 1)[..., 0]

        def variances(y: Tensor) -> Tensor:
            p = y.square()
            f = kept * p + (1 - kept) / dim
            square = f * (1 - f) / (own * kept**2)
            return square / (4 * p + 2.5 * square.sqrt() + 1e-12) + 1e-12

        if len(self.keys) == 1:
            return variances(units).sum(-1)
        r = torch.as_tensor(rotation(qubits(dim))).to(units)
        precisions = [1 / variances(units), 1 / variances(units @ r.T)]
        accelerated = self.parent.device.accelerator
        return torch.as_tensor(self.parent.steps.left_open(*(p if accelerated else p.numpy() for p in precisions)))


def _array(values: Any) -> Floats:
    """An array of a tensor or an array."""
    found: Floats = torch.as_tensor(values).cpu().numpy()
    return found
