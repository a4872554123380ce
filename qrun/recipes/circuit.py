"""`qrun circuit`: one block circuit to look at.

qrun circuit adapter.path=results/runs/<run>/adapter site=layers.0.self_attn.v_proj block=3 --qasm block.qasm
"""

from pathlib import Path
from typing import Any

import numpy as np
from qiskit import qasm3
from scipy.stats import special_ortho_group

from qrun.adapters.methods import spec
from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.saving import read
from qrun.config.verbs import CircuitConfig
from qrun.errors import InputError
from qrun.quantum.circuits import to_qiskit
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.encoding import qubits
from qrun.quantum.kernels import heisenberg
from qrun.quantum.synthesis import Written
from qrun.quantum.wiring import Wiring
from qrun.report.screen import console, say


def circuit(config: CircuitConfig, qasm: str | None) -> None:
    """Print drawing, counts, depth and what the noise does to it; write OpenQASM 3 if asked."""
    if qasm and not Path(qasm).expanduser().absolute().parent.is_dir():
        raise InputError(f"--qasm {qasm}: its folder does not exist")
    block, title, written = _block(config)
    n, noise = qubits(len(block)), config.noise
    wiring = Wiring(noise, config.device.circuit, config.device.coupling, config.device.keep)
    if not any(Path(heisenberg.stats.cache_path or "").glob("kernels.heisenberg-*")):
        say("compiling the simulator once, about 15 s")
    unit = np.random.default_rng(config.seed).normal(size=len(block))
    circuits = wiring.circuits(block[None], written)
    prepared = circuits.encoded(unit[None, None] / np.linalg.norm(unit))[0, 0]
    whole = to_qiskit(circuits, 0, wiring.preparations(n)[circuits.shape[0]].angles(prepared))
    if n <= 3:
        console.print(str(whole.draw("text", fold=console.width - 2)), markup=False)
    depth = whole.depth(lambda i: i.operation.name != "measure")
    counts, before = circuits.counts(), wiring.preparations(n)[circuits.shape[0]].czs
    survival = 1 - noise.total_error({**counts, "qubits": 0})
    slices = np.random.default_rng(config.seed).normal(size=(256, 1, len(block)))
    slices /= np.linalg.norm(slices, axis=-1, keepdims=True)
    device = NoisyDevice(wiring, None, np.float64)
    noisy = device.run(device.prepare(block[None], written=written), slices, np.ones((256, 1), bool), 0, np.arange(256))
    ideal = np.einsum("ab,njb->nja", block, slices) ** 2
    fidelity = float((np.sqrt(np.clip(noisy, 0, 1) * ideal).sum(-1) ** 2).mean())
    error = float(np.sqrt(np.square(np.sqrt(np.clip(noisy, 0, 1)) - np.sqrt(ideal)).sum(-1)).mean())
    gates = ", ".join(f"{counts[k]} {k.upper()}" for k in ("cz", "sx", "x", "rz"))
    say(f"{title}: {n} qubits, {gates}, depth {depth}; preparation {before} CZ")
    read_out = f"fidelity of the outcomes {fidelity:.4f}, error of |y| {error:.2%}"
    say(f"noise {noise.name}: gates survive with {survival:.2%}; simulated with readout: {read_out}")
    if qasm:
        Path(qasm).expanduser().write_text(qasm3.dumps(whole))
        say(f"OpenQASM 3 written to {qasm}")


def _block(config: CircuitConfig) -> tuple[Any, str, Written | None]:
    """The block, its name, and its circuit if it is one already."""
    if config.adapter.path is None:
        return special_ortho_group.rvs(config.dim, random_state=config.seed), f"random block, b = {config.dim}", None
    saved = read(Path(config.adapter.path).expanduser())
    method, site = spec(saved.config.method), config.site or next(iter(saved.tensors))
    if not isinstance(method, BlockMethod):
        raise InputError(f"adapter.path={config.adapter.path}: method {method.name} has no blocks that are circuits")
    if site not in saved.tensors:
        raise InputError(f"site={site}: not in this adapter; its sites are {', '.join(list(saved.tensors)[:3])}, ...")
    form, own = method.form(saved.config, site), saved.tensors[site].double()
    blocks, written = form.blocks(own, saved.config.dim), form.written(own, saved.config.dim)
    if config.block >= len(blocks):
        raise InputError(f"block={config.block}: {site} has blocks 0-{len(blocks) - 1}")
    one = None if written is None else (written[0][config.block][None], written[1])
    return np.asarray(blocks[config.block]), f"{site} block {config.block}, b = {saved.config.dim}", one
