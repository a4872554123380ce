"""Devices: who runs the block circuits. A kind of device is a module here, with a class and `open`, and its YAML.

shots     exact probabilities (Q x)^2, multinomial shots      noisy   gate-level noise, fast (quantum/simulator.py)
pennylane default.qubit, default.mixed, lightning.qubit       aer     Aer's density matrix, or pennylane-qiskit's device
fake      SamplerV2 on a fake IBM backend, offline            ibm     SamplerV2 on a real one (quantum/hardware.py)

Nothing is imported here: the configuration checks a kind's name before anything heavy.
"""

from pathlib import Path

KINDS = tuple(sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "base"}))
