"""From a config to a device that runs block circuits."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch

from qrun.adapters.executor import CircuitExecutor
from qrun.config.devices import DeviceConfig, EstimateConfig, Sign, SignsConfig
from qrun.config.schema import AdapterConfig, ModelConfig
from qrun.files import below
from qrun.quantum.devices.base import Device, Setting
from qrun.quantum.encoding import qubits
from qrun.quantum.kernels import prepare_and_measure
from qrun.quantum.noise import Noise
from qrun.quantum.synthesis import Ansatz
from qrun.recipes.checks import own_ansatz
from qrun.report.screen import say


class OnDevice(Protocol):
    """A config that says where circuits run and how counts become an estimate."""

    model: ModelConfig
    device: DeviceConfig
    noise: Noise
    estimate: EstimateConfig
    signs: SignsConfig
    results: str
    seed: int


def open_device(config: OnDevice, ansatz: Ansatz | None = None) -> Device:
    """The device of a config, two settings with half of its shots each, for blocks that are circuits of that ansatz
    already, if any; InputError for a combination it cannot run."""
    shots, signs = config.device.shots, config.signs.kind
    own = replace(config.device, shots=shots and shots // (2 if signs is Sign.two_settings else 1))
    folder = below(Path(config.results).resolve(), "qpu")
    module = import_module(f"qrun.quantum.devices.{config.device.kind}")
    place, reference = accelerator(config.model.device), signs is Sign.reference
    device: Device = module.open(Setting(own, config.noise, folder, place, reference, ansatz))
    if device.remark:
        say(device.remark)
    return device


def accelerator(wanted: str) -> str | None:
    """The GPU that circuits run on, where the model's device is one."""
    wanted = "cuda" if wanted == "auto" and torch.cuda.is_available() else wanted
    return wanted if wanted.startswith("cuda") else None


def open_executor(config: OnDevice, adapter: AdapterConfig) -> CircuitExecutor:
    """An executor of that adapter on that device; InputError at once if its blocks are no circuits."""
    qubits(adapter.dim)
    ansatz = own_ansatz(adapter)
    device = open_device(config, ansatz)
    if ansatz is not None and config.device.kind != "shots" and not device.wiring.runs_as_written(adapter.dim):
        say(f"blocks of {len(ansatz.pairs)} CZ are written anew: they run as they are with circuit=line, b up to 16")
    if config.device.kind == "noisy" and device.accelerator is None:
        tell_compiling(prepare_and_measure, 60)
    constrained, allocation = adapter.sign_constrained, config.device.allocation
    return CircuitExecutor(device, config.signs.kind, config.seed, constrained, config.estimate, allocation)


def tell_compiling(kernel: Any, seconds: int) -> None:
    """Say so before the first call of a compiled function on this machine."""
    if not any(Path(kernel.stats.cache_path or "").glob(f"kernels.{kernel.__name__}-*")):
        say(f"compiling the simulator once, about {seconds} s")


def circuit_line(summary: dict[str, float], config: OnDevice) -> str:
    """What the circuits did, in one line."""
    shots = f"{config.device.shots:,} shots" if config.device.shots else "exact probabilities"
    circuits, seconds = summary["circuits"], summary["circuit_seconds"]
    speed = f"{circuits:,.0f} of {shots} in {seconds:.1f} s ({circuits / max(seconds, 1e-9):,.0f}/s)"
    found = f"sign flips {summary['sign_flips']:.2%}, relative error {summary['relative_error']:.2%}"
    found += f" ({summary['counting_error']:.2%} by counting)"
    return f"circuits {speed}; {found}, mean rotation {summary['rotation_degrees']:.2f} degrees"
