"""`device=fake`: SamplerV2 on a recorded IBM processor, offline (quantum/hardware.py)."""

from qrun.quantum.hardware import open_processor

open = open_processor
