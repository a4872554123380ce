"""Blocks parameterised as circuits: Q = L_k CZ_k ... CZ_1 L_0 of quantum/synthesis.py with k CZ on a path, b = 2^n.

The n + 2 k angles are trained, so a trained block runs as it is and is never synthesised. Where all angles are zero
many of them turn Q in the same direction; a palindrome W^T W with random angles in W is the identity as well. Along a
qubit's wire an RY stands before, between and after its CZ, so with pairs that read the same from both ends every angle
has a mirror image, the negative of it at the start, and the middle one of each wire is zero. Mirror images turn Q in
the same direction there: n + k directions at most, and all n + 2 k angles differ in theirs once Q has moved.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from qrun.quantum.encoding import qubits
from qrun.quantum.synthesis import Ansatz, Written

LINE = {4: (0, 3, 1, 2)}  # bits along a path as preparations leave them (quantum/preparation.py), if not in order


@cache
def palindrome(n: int, czs: int) -> Ansatz:
    """An even number of CZ: half of them a brick wall on a path of n qubits, the others its mirror image. One qubit has
    none."""
    edges = tuple(pairwise(LINE.get(n, range(n))))
    wall = edges[::2] + edges[1::2]
    half = tuple(wall[i % len(wall)] for i in range(czs // 2)) if wall else ()
    return Ansatz(n, half + half[::-1])


@cache
def wires(shape: Ansatz) -> tuple[tuple[int, ...], ...]:
    """The angles on each qubit, in order of time."""
    turned = [a for a, b in shape.gates() if b < 0]
    return tuple(tuple(i for i, qubit in enumerate(turned) if qubit == q) for q in range(shape.qubits))


def identity_angles(count: int, shape: Ansatz, generator: torch.Generator) -> Tensor:
    """Angles [count, n + 2 k] in float32 of a palindrome with uniform angles in its first half: the identity."""
    angles = torch.zeros(count, shape.qubits + 2 * len(shape.pairs))
    for wire in wires(shape):
        half = len(wire) // 2
        turned = (2 * torch.rand(count, half, generator=generator) - 1) * math.pi
        angles[:, wire[:half]] = turned
        angles[:, wire[::-1][:half]] = -turned
    return angles


@cache
def _flip(n: int, a: int, b: int, device: torch.device) -> Tensor:
    """The diagonal of CZ as a column."""
    i = torch.arange(2**n, device=device)
    return (1.0 - 2.0 * ((i >> a) & (i >> b) & 1).double())[:, None]


def circuit_blocks(angles: Tensor, shape: Ansatz) -> Tensor:
    """Q [B, b, b] of angles [B, n + 2 k], of their dtype: the circuit on all b basis states at once, in float64."""
    n, size = shape.qubits, 2**shape.qubits
    c, s = (angles.double() / 2).cos(), (angles.double() / 2).sin()
    turns = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)  # RY [B, n + 2 k, 2, 2]
    state = torch.eye(size, dtype=torch.float64, device=angles.device).expand(len(angles), size, size)
    count = 0
    for a, b in shape.gates():
        if b >= 0:
            state = _flip(n, a, b, angles.device) * state
            continue
        pairs = state.reshape(len(angles), size >> (a + 1), 2, size << a)  # rows whose bit a is 0 and 1, side by side
        state = (turns[:, count, None] @ pairs).view(len(angles), size, size)
        count += 1
    return state.to(angles.dtype)


@dataclass(frozen=True)
class CircuitForm:
    """k CZ a block; the start is drawn from the site's name alone."""

    czs: int
    site: str

    def shape(self, dim: int) -> Ansatz:
        """The order of gates. Raises InputError where b is no power of two."""
        return palindrome(qubits(dim), self.czs)

    def start(self, count: int, dim: int) -> Tensor:
        seed = int(hashlib.sha256(self.site.encode()).hexdigest()[:15], 16)
        return identity_angles(count, self.shape(dim), torch.Generator().manual_seed(seed))

    def blocks(self, parameters: Tensor, dim: int) -> Tensor:
        return circuit_blocks(parameters, self.shape(dim))

    def written(self, parameters: Tensor, dim: int) -> Written:
        return parameters.detach().cpu().double().numpy(), self.shape(dim)
