"""`device=ibm`: SamplerV2 on an IBM processor (quantum/hardware.py)."""

from qrun.quantum.hardware import open_processor

open = open_processor
