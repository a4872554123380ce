"""The project's noise in Aer's terms; qrun/config/noise.py defines it."""

import math
from typing import Any

from qrun.config.noise import Noise


def aer_noise_model(noise: Noise) -> Any:
    """The same noise for Aer, gate noise only; readout and `block` act on probabilities (`after_measurement`)."""
    from qiskit_aer.noise import NoiseModel, depolarizing_error, thermal_relaxation_error

    def thermal(nanoseconds: float) -> Any:
        t1 = noise.t1_us * 1e3 if noise.t1_us else math.inf
        t2 = noise.t2_us * 1e3 if noise.t2_us else 2 * t1
        return thermal_relaxation_error(t1, t2, nanoseconds)

    model = NoiseModel(basis_gates=["rz", "sx", "x", "cz"])
    one, two = depolarizing_error(2 * noise.sx, 1), depolarizing_error(4 * noise.cz / 3, 2)
    if noise.t1_us or noise.t2_us:
        one = one.compose(thermal(noise.sx_ns))
        two = two.compose(thermal(noise.cz_ns).tensor(thermal(noise.cz_ns)))
    if not one.ideal():
        model.add_all_qubit_quantum_error(one, ["sx", "x"])
    if not two.ideal():
        model.add_all_qubit_quantum_error(two, ["cz"])
    return model
