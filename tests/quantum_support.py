"""Random blocks, slices and noise for the tests of the quantum room."""

import numpy as np
from scipy.stats import special_ortho_group

from qrun.quantum.noise import Noise

# every kind of noise at once, strong enough to see
FULL = Noise(
    sx=3e-3, cz=1e-2, t1_us=20, t2_us=12, sx_ns=36, cz_ns=68, read_1_given_0=0.02, read_0_given_1=0.05, block=0.03
)


def rotations(n, count, seed=0):
    """Haar-random blocks [count, 2^n, 2^n]."""
    return special_ortho_group.rvs(2**n, size=count, random_state=seed).reshape(count, 2**n, 2**n)


def unit_slices(n, tokens, blocks, seed=0):
    x = np.random.default_rng(seed).normal(size=(tokens, blocks, 2**n))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
