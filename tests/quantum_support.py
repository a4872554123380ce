"""Random blocks, slices, noise and an independent density matrix for the tests of the quantum room."""

import numpy as np
from scipy.stats import special_ortho_group

from qrun.quantum.calibration import Calibration, Coupler, Qubit
from qrun.quantum.gates import CZ, RY, RZ, SX
from qrun.quantum.noise import Depolarizing, Noise

# every kind of noise at once, strong enough to see
FULL = Noise(
    sx=3e-3, cz=1e-2, t1_us=20, t2_us=12, sx_ns=36, cz_ns=68, read_1_given_0=0.02, read_0_given_1=0.05, block=0.03
)


def chip(name, couplers, readout, left_out=(), **words):
    """A calibration of couplers' errors and qubits' readout errors, the qubits of `left_out` not working."""
    qubits = {q: Qubit(0.0, 36, None, None, r, r) for q, r in enumerate(readout) if q not in left_out}
    pairs = {pair: Coupler(error, 68) for pair, error in couplers.items()}
    words = {"date": "2026-11-01 10:00", **words}
    out = {str(q): "not operational" for q in left_out}
    return Calibration(name, words.pop("date"), len(readout), qubits, pairs, out, **words)


def rotations(n, count, seed=0):
    """Haar-random blocks [count, 2^n, 2^n]."""
    return special_ortho_group.rvs(2**n, size=count, random_state=seed).reshape(count, 2**n, 2**n)


def unit_slices(n, tokens, blocks, seed=0):
    x = np.random.default_rng(seed).normal(size=(tokens, blocks, 2**n))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def density_matrix(circuits, block, unit, preparation, places):
    """Outcome probabilities [2^n] of one circuit by Kraus operators on a dense density matrix, gate after gate."""
    n, place = circuits.qubits, places.of(block)
    rho = np.zeros((2**n, 2**n), complex)
    rho[0, 0] = 1
    half_x = np.array([[1 + 1j, 1 - 1j], [1 - 1j, 1 + 1j]]) / 2

    def act(operators, on):
        nonlocal rho
        whole = [_embedded(np.asarray(k, complex), on, n) for k in operators]
        rho = sum(k @ rho @ k.conj().T for k in whole)

    def wait(qubit, nanoseconds):
        own = places.one[place][qubit]
        for channel in Noise(t1_us=own.t1_us, t2_us=own.t2_us, sx_ns=float(nanoseconds)).channels(1):
            act(channel.kraus(), [qubit])

    def turn(matrix, qubit):
        act([matrix], [qubit])
        for channel in places.one[place][qubit].channels(1):
            act(channel.kraus(), [qubit])

    def phase(angle, qubit):
        act([np.diag([np.exp(-0.5j * angle), np.exp(0.5j * angle)])], [qubit])

    waits, last = places.waits(circuits)
    angles = preparation.angles(unit)
    for g in range(circuits.offsets[block], circuits.offsets[block + 1]):
        kind, a, b = circuits.kind[g], int(circuits.first[g]), int(circuits.second[g])
        angle = circuits.angle[g] + (angles[circuits.parameter[g]] if circuits.parameter[g] >= 0 else 0)
        wait(a, waits[g, 0])
        if kind == CZ:
            wait(b, waits[g, 1])
            act([np.diag([1, 1, 1, -1])], [a, b])
            pairs = places.two[place]
            both = pairs[a, b] if (a, b) in pairs else pairs[b, a][::-1]
            for channel in both[0].channels(2):
                if isinstance(channel, Depolarizing):
                    act(channel.kraus(), [a, b])
            for qubit, noise in zip((a, b), both, strict=True):
                for channel in noise.channels(2):
                    if not isinstance(channel, Depolarizing):
                        act(channel.kraus(), [qubit])
        elif kind == RZ:
            phase(angle, a)
        elif kind == RY:
            for rotation in (angle + np.pi, np.pi):
                turn(half_x, a)
                phase(rotation, a)
        else:
            turn(half_x if kind == SX else np.array([[0, 1], [1, 0]]), a)
    for qubit in range(n):
        wait(qubit, last[block, qubit])
    return places.measured(np.diag(rho).real, circuits, block)


def _embedded(matrix, on, n):
    """A gate on the qubits `on` (the first lowest) of n."""
    whole = np.zeros((2**n, 2**n), complex)
    for i in range(2**n):
        inside = sum((i >> q & 1) << t for t, q in enumerate(on))
        rest = i & ~sum(1 << q for q in on)
        for o in range(2 ** len(on)):
            whole[rest | sum((o >> t & 1) << q for t, q in enumerate(on)), i] += matrix[o, inside]
    return whole
