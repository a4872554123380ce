"""Exact circuits of real orthogonal blocks: RY and CZ on neighbours of a path or a star, nothing else.

    Q = L_k CZ_k L_(k-1) ... CZ_1 L_0,     L_0 an RY on every qubit, L_i an RY on both qubits of CZ_i

n = 1    Q is one RY.
n = 2    2 CZ, in closed form. SO(4) is two commuting copies of SU(2), {IY, YZ, YX} and {YI, ZY, XY}; CZ turns IY into
         ZY and YI into YZ, so the six angles are the Euler angles (y, z, y) of two unit quaternions.
n = 3    14 CZ, n = 4: 60 CZ, by Levenberg-Marquardt (quantum/descent.py) from the circuit of a block near the
         identity, then from random starts. Counting parameters gives lower bounds of 13 and 58; 14 is also the proven
         count of arXiv:2512.18049. At the identity the form is singular: rotations of less than about 1e-4 are found
         slowly or not. What no start solves to 1e-9 is returned as unsolved, and the caller takes another way.

Little-endian: bit q of an amplitude's index is qubit q. RY(t) = cos(t/2) - i Y sin(t/2).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qrun.quantum.descent import descend

Floats = NDArray[np.float64]
Edge = tuple[int, int]
Edges = tuple[Edge, ...]
CZS = {2: 2, 3: 14, 4: 60}  # of a block on so many qubits
EXACT = 1e-9  # largest entry of |circuit - Q| that counts as exact
TRIES = 12
NEAR = 1e-4  # share of the loss that a step towards the nearest circuit has to gain
GUIDE = 13  # of 14 seeds the one with the fewest steps, at n = 3


Written = tuple[NDArray[np.float64], "Ansatz"]  # angles [B, n + 2 k] and the order of gates of B circuits


def path(n: int) -> Edges:
    """Edges of a path 0 - 1 - ... - n-1."""
    return tuple((q, q + 1) for q in range(n - 1))


STAR: Edges = ((0, 1), (0, 2), (0, 3))


def shapes(n: int) -> tuple[Edges, ...]:
    """Couplings of n neighbours on a chip of rows and bridges that circuits are written for, the most usual first."""
    return (path(4), STAR) if n == 4 else (path(n),)


@dataclass(frozen=True)
class Ansatz:
    """The order of gates: CZ on these pairs. Angles are [n + 2 k]: L_0 by qubit, then each L_i, first qubit of the pair
    first."""

    qubits: int
    pairs: Edges

    @property
    def angles(self) -> int:
        return self.qubits + 2 * len(self.pairs)

    def gates(self) -> list[tuple[int, int]]:
        """(q, -1) for an RY, (a, b) for a CZ, in order."""
        first = [(q, -1) for q in range(self.qubits)]
        return first + [gate for a, b in self.pairs for gate in ((a, b), (a, -1), (b, -1))]


MERGED = Ansatz(3, (path(3)[1],) * 2 + path(3) * 5 + (path(3)[0],))  # 13 CZ, of which the first two are an SO(4)


def ansatz(n: int, edges: Edges) -> Ansatz:
    """Pairs for a generic block: the edges in turn, CZS[n] of them."""
    return Ansatz(n, tuple(edges[i % len(edges)] for i in range(CZS.get(n, 0))) if edges else ())


def synthesise_angles(blocks: Floats, shape: Ansatz) -> tuple[Floats, NDArray[np.bool_]]:
    """Angles [B, n + 2 k] of blocks [B, b, b] with determinant 1, and which of them are exact to EXACT."""
    if shape.qubits == 1:
        angles = 2 * np.arctan2(blocks[:, 1, 0], blocks[:, 0, 0])[:, None]
    elif shape.qubits == 2:
        angles = _cartan(blocks)
    else:
        angles = _levenberg_marquardt(blocks, shape)
    return angles, _distance(unitary(angles, shape), blocks) < EXACT


def unitary(angles: Floats, shape: Ansatz) -> Floats:
    """The matrix [B, b, b] of a circuit."""
    n, count = shape.qubits, 0
    matrix = np.broadcast_to(np.eye(2**n), (len(angles), 2**n, 2**n))
    for a, b in shape.gates():
        if b >= 0:
            matrix = _flip(n, a, b)[:, None] * matrix
            continue
        index, sign = _turn(n, a)
        c, s = np.cos(angles[:, count] / 2)[:, None, None], np.sin(angles[:, count] / 2)[:, None, None]
        matrix = c * matrix + s * (sign[:, None] * matrix[:, index])
        count += 1
    return matrix


def _distance(found: Floats, blocks: Floats) -> Floats:
    """Largest entry of the difference, up to a global sign, [B]."""
    signs = np.where(np.einsum("bij,bij->b", found, blocks) < 0, -1.0, 1.0)
    distance: Floats = np.abs(found - signs[:, None, None] * blocks).max((1, 2))
    return distance


# --- two qubits -----------------------------------------------------------------------------------------------------


@cache
def _quaternion_basis() -> Floats:
    """Real matrices [4, 4, 4, 4] of e_i f_j with e = (1, YX, IY, YZ) and f = (1, XY, YI, ZY), each times -i: quaternion
    units (w, x, y, z) of the two copies. Letters: qubit 1 first."""
    eye, x, y, z = np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])
    one = [np.eye(4), *(-1j * np.kron(a, b) for a, b in ((y, x), (eye, y), (y, z)))]
    two = [np.eye(4), *(-1j * np.kron(a, b) for a, b in ((x, y), (y, eye), (z, y)))]
    return np.array([[(e @ f).real for f in two] for e in one])


def _cartan(blocks: Floats) -> Floats:
    """Angles [B, 6] of SO(4) blocks."""
    overlap = np.einsum("ijab,nab->nij", _quaternion_basis(), blocks) / 4  # rank one: the product of both quaternions
    left, _, right = np.linalg.svd(overlap)
    right[:, 0] *= np.sign(np.einsum("ni,nij,nj->n", left[:, :, 0], overlap, right[:, 0]))[:, None]
    low = _euler(left[:, :, 0])  # IY, YZ, IY: RY on qubit 0, on qubit 1 between the CZ, on qubit 0
    high = _euler(right[:, 0])  # YI, ZY, YI
    return np.stack([low[0], high[0], high[1], low[1], low[2], high[2]], 1)


def _euler(quaternions: Floats) -> tuple[Floats, Floats, Floats]:
    """(first, middle, last) of exp(-i last y/2) exp(-i middle z/2) exp(-i first y/2) = w - i (x X + y Y + z Z)."""
    w, x, y, z = quaternions.T
    total, difference = np.arctan2(y, w), np.arctan2(x, z)
    middle = 2 * np.arctan2(np.hypot(z, x), np.hypot(w, y))
    return total - difference, middle, total + difference


# --- more qubits ----------------------------------------------------------------------------------------------------


@cache
def _turn(n: int, qubit: int) -> tuple[NDArray[np.intp], Floats]:
    """RY(t) = cos(t/2) + sin(t/2) J: (J v)_i = sign_i v[index_i]."""
    i = np.arange(2**n)
    return i ^ (1 << qubit), np.where(i >> qubit & 1, 1.0, -1.0)


@cache
def _flip(n: int, a: int, b: int) -> Floats:
    """The diagonal of CZ."""
    i = np.arange(2**n)
    return np.where((i >> a & 1) & (i >> b & 1), -1.0, 1.0)


def _levenberg_marquardt(blocks: Floats, shape: Ansatz) -> Floats:
    """Angles [B, P] of least |circuit - Q|: each block from new starts until one is exact, TRIES at most. They are the
    same for every block: a block's circuit depends on nothing beside it."""
    angles = np.zeros((len(blocks), shape.angles))
    left = np.arange(len(blocks))
    for trial in range(TRIES):
        if not len(left):
            break
        start = _guide(shape) if trial == 0 else _random(trial, shape)
        angles[left] = _descended(blocks[left], np.repeat(start, len(left), 0), shape)
        left = left[_distance(unitary(angles[left], shape), blocks[left]) >= EXACT]
    return angles


def _random(seed: int, shape: Ansatz) -> Floats:
    """Angles [1, P]."""
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, (1, shape.angles))


@cache
def _guide(shape: Ansatz) -> Floats:
    """The circuit [1, P] of a fixed rotation as small as trained ones, from which others are a dozen steps away, a
    third of those from random angles."""
    dim = 2**shape.qubits
    k = np.triu(np.random.default_rng(GUIDE).normal(scale=0.03, size=(dim, dim)), 1)
    k = (k - k.T) / 2
    rotation = np.linalg.solve(np.eye(dim) + k, np.eye(dim) - k).astype(float)
    return _descended(rotation[None], _random(GUIDE, shape), shape)


def _descended(blocks: Floats, starts: Floats, shape: Ansatz, least: float = 1e-9) -> Floats:
    """Angles [B, P] after one descent of every block from its start, each with its own damping, until a step gains less
    than that share of the loss."""
    angles = np.array(starts)
    descend(np.ascontiguousarray(blocks, float), angles, np.array(shape.gates()), least)
    return angles


def nearest_angles(blocks: Floats, starts: Floats, shape: Ansatz) -> Floats:
    """Angles [B, n + 2 k] of the circuits with least |circuit - Q|_F to blocks [B, b, b], by a descent from each of the
    starts [S, B, n + 2 k]; a local minimum where no start is good. A circuit that came out as -Q gets 2 pi more on its
    first qubit, which is the sign."""
    best, least = starts[0].copy(), np.full(len(blocks), np.inf)
    for start in starts:
        found = _descended(blocks, start, shape, NEAR)
        negative = np.einsum("bij,bij->b", unitary(found, shape), blocks) < 0
        found[:, 0] += 2 * np.pi * negative
        distance = np.square(unitary(found, shape) - blocks).sum((1, 2))
        better = distance < least
        best[better], least[better] = found[better], distance[better]
    return best
