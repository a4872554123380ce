"""`qrun circuit`: one block circuit to look at.

qrun circuit adapter.path=results/runs/<run>/adapter site=layers.0.self_attn.v_proj block=3 --qasm block.qasm
qrun circuit dim=8 --draw circuit.png         preparation, Q and measurement on coloured ground
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from qiskit import qasm3

from qrun.adapters.methods import spec
from qrun.adapters.methods.base import BlockMethod
from qrun.adapters.saving import read
from qrun.config.verbs import CircuitConfig
from qrun.errors import InputError
from qrun.quantum.circuits import Circuits, to_qiskit
from qrun.quantum.devices.noisy import NoisyDevice
from qrun.quantum.encoding import qubits
from qrun.quantum.gates import BASIS, RY, RZ
from qrun.quantum.kernels import heisenberg
from qrun.quantum.synthesis import Written
from qrun.quantum.wiring import Wiring
from qrun.recipes.device import tell_compiling
from qrun.report.pictures import Gate, check_picture, circuit_picture
from qrun.report.screen import console, say

GATES = [name.upper() for name in BASIS]


def circuit(config: CircuitConfig, qasm: str | None, draw: str | None) -> None:
    """Print drawing, counts, depth and what the noise does to it; write OpenQASM 3 and a picture if asked."""
    check_picture(draw)
    if qasm and not Path(qasm).absolute().parent.is_dir():
        raise InputError(f"--qasm {qasm}: its folder does not exist")
    block, title, written = _block(config)
    n, noise = qubits(len(block)), config.noise
    wiring = Wiring(noise, config.device.circuit, config.device.coupling, config.device.keep)
    tell_compiling(heisenberg, 15)
    unit = np.random.default_rng(config.seed).normal(size=len(block))
    circuits = wiring.circuits(block[None], written)
    prepared = circuits.encoded(unit[None, None] / np.linalg.norm(unit))[0, 0]
    angles = wiring.preparations(n)[circuits.shape[0]].angles(prepared)
    whole = to_qiskit(circuits, 0, angles)
    if n <= 3:
        console.print(str(marked(whole, circuits).draw("text", fold=console.width - 2)), markup=False)
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
        Path(qasm).write_text(qasm3.dumps(whole))
        say(f"OpenQASM 3 written to {qasm}")
    if draw:
        shown = f"{title}: {n} qubits, {gates}"
        circuit_picture(n, list(gates_of(circuits, angles)), shown).savefig(draw, dpi=120)
        say(f"picture written to {draw}")


def marked(whole: Any, circuits: Circuits) -> Any:
    """The Qiskit circuit of one block with a labelled barrier before Q and before the measurement."""
    kinds = circuits.kind[: circuits.split[0]]
    starts = {int(np.where(kinds == RY, 4, 1).sum()): "Q", len(whole.data) - whole.num_clbits: "measurement"}
    found = whole.copy_empty_like()
    for at, instruction in enumerate(whole.data):
        if at in starts:
            found.barrier(label=starts[at])
        found.append(instruction)
    return found


def gates_of(circuits: Circuits, angles: Any) -> Iterator[Gate]:
    """The gates of one block, of the slice's preparation first, whose last turns are also Q's first; RY stay whole."""
    for g, kind in enumerate(circuits.kind):
        first, second, parameter = (int(column[g]) for column in (circuits.first, circuits.second, circuits.parameter))
        turn = circuits.angle[g] + (angles[parameter] if parameter >= 0 else 0)
        turn = (turn + np.pi) % (2 * np.pi) - np.pi
        words = f"{GATES[kind]}\n{turn / np.pi:.2f}π" if kind in (RY, RZ) else GATES[kind]
        yield Gate(int(g >= circuits.split[0]), (first,) if second < 0 else (first, second), words)
    for bit, qubit in enumerate(circuits.wires[0].tolist()):
        yield Gate(2, (qubit,), f"bit {bit}")


def _block(config: CircuitConfig) -> tuple[Any, str, Written | None]:
    """The block, its name, and its circuit if it is one already."""
    if config.adapter.path is None:
        random = scipy.stats.special_ortho_group.rvs(config.dim, random_state=config.seed)
        return random, f"random block, b = {config.dim}", None
    saved = read(Path(config.adapter.path))
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
