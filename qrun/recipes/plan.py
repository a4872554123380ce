"""`qrun plan`: circuits, shots, jobs and seconds of a run on a QPU, from the model's shape alone.

qrun plan model=llama                       the paper's one v_proj site: 64 pairs, 16 circuits per token, 1,328 circuits
                                            for 83 tokens
qrun plan model=smollm2 adapter=cayley      all 210 sites
qrun plan estimate=calibrated signs=two_settings      twice the circuits of half the shots, and those of calibration
qrun plan device=fake --draw chip.png                 the chip with the places of blocks; without device, the lattice
"""

from dataclasses import replace

from matplotlib.figure import Figure

from qrun.adapters.methods import spec
from qrun.adapters.sites import adapted, check_divides
from qrun.config.devices import Estimator, Rates, Sign
from qrun.config.verbs import PlanConfig
from qrun.errors import InputError
from qrun.language.models import model_shape
from qrun.quantum.calibration import Calibration, read_calibration
from qrun.quantum.encoding import qubits
from qrun.quantum.estimates import REPEATS, SLICES
from qrun.quantum.layout import coupling, drawing, heavy_hex
from qrun.quantum.plan import JOBS_PER_MINUTE, OPEN_PLAN_S, QUICK_S, best_share, block_cost
from qrun.quantum.plan import plan as cost
from qrun.quantum.services import named_backend
from qrun.quantum.wiring import Wiring
from qrun.recipes.checks import own_ansatz
from qrun.report.pictures import check_picture, chip_map
from qrun.report.screen import say, table


def plan(config: PlanConfig, draw: str | None) -> None:
    """Print the plan, and draw the chip if asked. Raises InputError for a b that is no circuit or does not divide, and
    for an unknown backend."""
    check_picture(draw)
    shape = model_shape(config.model)
    if shape is None:
        raise InputError(f"model={config.model.name}: its shape is not stated; give model.path=<local folder>")
    dim, side = config.adapter.dim, config.adapter.side
    qubits(dim)
    selected = adapted(shape, config.adapter)
    check_divides(selected, dim, side)
    method = spec(config.adapter.method)
    method.check(config.adapter, selected)

    nominal = config.device.kind == "ibm" and config.device.backend is None
    chip = heavy_hex() if nominal else read_calibration(named_backend(config.device.kind, config.device.backend))
    keep = 1.0 if nominal else config.device.keep  # where all places are alike none is better
    reference = config.signs.kind is Sign.reference
    wiring = Wiring(
        chip.typical, config.device.circuit, config.device.coupling, keep, chip, reference=reference,
        ansatz=own_ansatz(config.adapter),
    )  # fmt: skip
    n = wiring.qubits(dim)
    block = block_cost(wiring, n)
    settings = 2 if config.signs.kind is Sign.two_settings else 1
    shots = (config.device.shots or 0) // settings
    per_site = [site.width(side) // dim for site in selected]
    found = cost(block.places, per_site, config.tokens * settings, shots, block.seconds)
    size = f"{len(selected):,}, {sum(per_site):,}, {method.count(config.adapter, selected) or 0:,}"
    packed, counts = found.blocks_per_circuit, block.counts
    gates = f"{counts['cz']} CZ, {counts['sx'] + counts['x']} SX, depth {block.depth}"
    spread = zip(("best", "mean", "worst"), block.errors, strict=True)
    rows = [
        ["sites, blocks, parameters", size],
        ["blocks at once on the chip", f"{packed} of {n} qubits ({packed * n} of {len(chip.qubits)} that work)"],
        ["circuits per token", f"{found.circuits_per_token * settings:,}"],
        [f"circuits for {config.tokens:,} tokens", f"{found.circuits:,}"],
        [f"executions at {shots:,} shots", f"{found.executions:,}"],
        ["jobs (10 million executions each)", f"{found.jobs:,}"],
        ["QPU time, estimated by IBM's quick form", f"{found.quick_seconds / 60:,.1f} min"],
        ["QPU time, estimated from repetition delay", f"{found.qpu_seconds / 60:,.1f} min"],
        ["estimated share of the open plan's 10 min", f"{found.open_plan_share:,.2f}"],
        [f"one circuit per job, {JOBS_PER_MINUTE} jobs a minute", f"{found.one_circuit_per_job_minutes:,.1f} min"],
        ["block circuit", f"{gates}, {block.seconds * 1e6:.1f} us"],
        ["survival of a block circuit", f"{block.gate_survival:.2%} gates, {block.survival:.2%} with readout"],
        ["error of |y| by place, rms", " ".join(f"{word} {error**0.5:.1%}" for word, error in spread)],
    ]
    if config.estimate.kind is not Estimator.sqrt:
        known = cost(block.places, per_site, SLICES * settings, shots, block.seconds)
        counted = 2 * REPEATS if config.estimate.rates is Rates.measured else 0
        seconds = known.quick_seconds + counted * shots * QUICK_S
        rows.insert(
            5, ["circuits of known outcome, QPU time", f"{known.circuits + counted:,}, {seconds / 60:,.1f} min"]
        )
    calibration = (
        f"calibration of {chip.date[:10]}" if chip.date else "nominal errors: CZ 1.78e-3, SX 2.45e-4, readout 1e-2"
    )
    table(f"{config.model.name}, b = {dim}, on {chip.name}", ["", "value"], rows, calibration)
    if not nominal:
        everywhere = replace(wiring, keep=1.0)
        all_places = everywhere.chosen(n)
        errors = everywhere.errors(n, all_places).tolist()
        say(drawing(chip, wiring.chosen(n)))
        say("places by quality, 0 the best tenth to 9; . not used, x out of order")
        say(chip.words)
        best, error = best_share(errors, dim, shots)
        gain = f"{best} of {len(all_places)} places have the least error, {error**0.5:.1%} rms with shots"
        say(f"at the QPU time of device.keep=1: {gain}; device.keep={config.device.keep:g} takes {block.places}")
    if draw:
        draw_places(wiring, chip, n, not nominal).savefig(draw, dpi=120)
        say(f"picture written to {draw}")
    if config.device.budget_s is not None and found.estimate > config.device.budget_s:
        need = f"this run needs about {found.estimate:,.0f} s by estimate; what exceeds the budget would not be sent"
        say(f"over budget: device.budget_s={config.device.budget_s:g} s, {need}")
    if found.quick_seconds > OPEN_PLAN_S:
        tokens = int(config.tokens * OPEN_PLAN_S / found.quick_seconds)
        say(f"the open plan's {OPEN_PLAN_S} s hold about {tokens:,} of these tokens")


def draw_places(wiring: Wiring, chip: Calibration, n: int, calibrated: bool) -> Figure:
    """The chip with the places of circuits of n qubits, coloured by their errors where qubits differ."""
    chosen, couplings = wiring.chosen(n), wiring.couplings(n)
    edges = [couplings[coupling(chip, place, couplings)] for place in chosen]
    places = [(place, [(place[a], place[b]) for a, b in own]) for place, own in zip(chosen, edges, strict=True)]
    out = [int(name) for name in chip.left_out if "-" not in name]
    pairs = [name.split("-") for name in chip.left_out if "-" in name]
    errors = wiring.errors(n, chosen) ** 0.5 if calibrated else None
    title = f"{chip.name}: {len(chosen)} places of {n} qubits, {n * len(chosen)} of {len(chip.qubits)} that work"
    return chip_map(chip.size, [*chip.couplers, *((int(a), int(b)) for a, b in pairs)], out, places, errors, title)
