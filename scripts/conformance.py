"""The simulator against recorded chips: is `device=noisy noise=<chip>` what `device=fake` counts, slice by slice?

    python scripts/conformance.py                          three chips, b = 2, 4, 8, 16; about 20 s each
    python scripts/conformance.py FakeFez --qubits 3

Every block runs at its own place of the chip; z = (frequency - p) / sqrt(p (1 - p) / shots) over all outcomes of all
slices has a root mean square of 1 if the simulated p are right.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import special_ortho_group

from qrun.config.devices import DeviceConfig
from qrun.quantum.devices.base import Setting
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.hardware import SIMULATED_QUBITS, open_processor
from qrun.quantum.noise import Noise
from qrun.quantum.services import FAKES
from qrun.quantum.wiring import Wiring

SHOTS, TOKENS = 8192, 6


def compare(chip: str, n: int) -> tuple[float, float, int]:
    """Root mean square and largest |z|, and the number of outcomes."""
    blocks = max(1, SIMULATED_QUBITS // n)
    q = special_ortho_group.rvs(2**n, size=blocks, random_state=n).reshape(blocks, 2**n, 2**n)
    x = np.random.default_rng(n).normal(size=(TOKENS, blocks, 2**n))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    mask, numbers = np.ones(x.shape[:2], bool), np.arange(TOKENS)
    wiring = Wiring(Noise(calibration=chip), keep=0.8)
    noisy = NoisyDevice(wiring, None, np.float64)
    p = noisy.run(noisy.prepare(q), x, mask, 0, numbers)
    with tempfile.TemporaryDirectory() as folder:
        fake = open_processor(Setting(DeviceConfig("fake", SHOTS, chip), Noise(), Path(folder)))
        counted = fake.run(fake.prepare(q), x, mask, 0, numbers)
    z = (counted - p) / np.sqrt(p * (1 - p) / SHOTS)
    return float(np.sqrt(np.square(z).mean())), float(np.abs(z).max()), z.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chips", nargs="*", default=list(FAKES))
    parser.add_argument("--qubits", type=int, nargs="+", default=[1, 2, 3, 4])
    words = parser.parse_args()
    for chip in words.chips:
        for n in words.qubits:
            started = time.perf_counter()
            rms, largest, count = compare(chip, n)
            print(f"{chip} b = {2**n}: rms z {rms:.3f}, largest {largest:.2f}, {count} outcomes, "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
