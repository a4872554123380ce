"""From a config to a device that runs block circuits."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qrun.adapters.executor import CircuitExecutor
from qrun.config.schema import DeviceConfig, ModelConfig, NoiseConfig, Precision, Sign
from qrun.quantum.cache import BlockCache, default_folder
from qrun.quantum.devices import AerDevice, Device, NoisyDevice, PennyLaneDevice, ShotsDevice
from qrun.quantum.encoding import qubits
from qrun.quantum.layout import Chip
from qrun.report.screen import say


class OnDevice(Protocol):
    """A config that says where circuits run."""

    model: ModelConfig
    device: DeviceConfig
    noise: NoiseConfig
    results: str
    seed: int


def open_device(config: OnDevice) -> Device:
    """The device of a config; InputError for a combination it cannot run."""
    device, noise = config.device, config.noise.build()
    dtype: Any = np.float64 if device.precision is Precision.float64 else np.float32
    if device.kind == "shots":
        return ShotsDevice(noise, device.shots, dtype)
    if device.kind == "noisy":
        import torch

        wanted = (
            config.model.device if config.model.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        )
        return NoisyDevice(
            noise, device.shots, dtype, BlockCache(default_folder()), wanted if wanted.startswith("cuda") else None
        )
    if device.kind == "pennylane":
        return PennyLaneDevice(noise, device.shots, device.backend)
    if device.kind == "aer":
        return AerDevice(noise, device.shots, device.backend)
    from qrun.quantum.hardware import open_processor

    folder = Path(config.results).expanduser().resolve() / "qpu"
    processor = open_processor(
        device.kind, device.backend, device.shots or 0, device.optimization_level, device.budget_s, folder
    )
    say(f"processor {processor.chip.name}, calibration of {processor.chip.date}; {dead_couplers(processor.chip)}")
    return processor


def dead_couplers(chip: Chip) -> str:
    """Which couplers the packing leaves out, in words."""
    return (
        f"left out as dead (error 0.5 or more): {len(chip.dead)} couplers, "
        f"{', '.join(f'{a}-{b}' for a, b in chip.dead)}"
        if chip.dead
        else "no dead coupler"
    )


def open_executor(config: OnDevice, dim: int, sign: Sign) -> CircuitExecutor:
    """An executor on that device; InputError at once if blocks of this dimension are no circuits."""
    qubits(dim)
    return CircuitExecutor(open_device(config), sign, config.seed)


def circuit_line(summary: dict[str, float], config: OnDevice) -> str:
    """What the circuits did, in one line."""
    shots = f"{config.device.shots:,} shots" if config.device.shots else "exact probabilities"
    rate = summary["circuits"] / max(summary["circuit_seconds"], 1e-9)
    return (
        f"circuits {summary['circuits']:,.0f} of {shots} in {summary['circuit_seconds']:.1f} s ({rate:,.0f}/s); "
        f"sign flips {summary['sign_flips']:.2%}, "
        f"relative error {summary['relative_error']:.2%}, mean rotation {summary['rotation_degrees']:.2f} degrees"
    )
