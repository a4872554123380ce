"""Pictures of single runs: what lies where."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from qrun.errors import InputError
from qrun.quantum.calibration import calibration
from qrun.quantum.layout import heavy_hex, pack
from qrun.report.pictures import (
    FOLD,
    PARTS,
    Gate,
    block_histograms,
    check_picture,
    chip_map,
    circuit_picture,
    loss_curve,
    positions,
)


def couplers_of(name):
    chip = heavy_hex() if name == "lattice" else calibration(name)
    out = [tuple(map(int, pair.split("-"))) for pair in chip.left_out if "-" in pair]
    return chip, [*chip.couplers, *out]


@pytest.mark.parametrize("name", ["lattice", "FakeMarrakesh", "FakeFez", "FakeTorino"])
def test_coupled_qubits_are_neighbours_and_none_lies_on_another(name):
    chip, couplers = couplers_of(name)
    where = positions(chip.size, couplers)
    assert len(set(where.values())) == chip.size
    assert {math.dist(where[a], where[b]) for a, b in couplers} == {1.0}


def test_a_square_lattice_is_a_square():
    pairs = [(q, q + 1) for q in range(12) if q % 4 < 3] + [(q, q + 4) for q in range(8)]
    assert positions(12, pairs) == {q: (q % 4, q // 4) for q in range(12)}


@pytest.mark.parametrize("errors", [None, np.linspace(0.05, 0.2, 63)])
def test_a_chip_shows_every_place_and_crosses_what_is_out(errors):
    chip, couplers = couplers_of("FakeMarrakesh")
    chosen = pack(chip, 2)
    out = [int(q) for q in chip.left_out if "-" not in q]
    figure = chip_map(chip.size, couplers, out, [(place, [place]) for place in chosen], errors, "chip")
    lines = figure.axes[0].lines
    thick = [line for line in lines if line.get_linewidth() == 5]
    assert len(thick) == len(chosen) == 63 and len({to_hex(line.get_color()) for line in thick}) == (
        63 if errors is not None else 3
    )
    (crossed,) = [line for line in lines if line.get_marker() == "x"]
    assert crossed.get_xydata().tolist() == [list(positions(chip.size, couplers)[113])] and out == [113]
    assert len(figure.axes) == (1 if errors is None else 2)  # the colours' scale


def test_a_circuit_has_its_three_parts_one_after_another():
    gates = [Gate(0, (0,), "RY"), Gate(0, (1,), "RY"), Gate(0, (0, 1), "CZ"), Gate(1, (0, 2), "CZ"), Gate(1, (1,), "X"),
             *(Gate(2, (q,), f"bit {q}") for q in range(3))]  # fmt: skip
    axes = circuit_picture(3, gates, "block").axes[0]
    grounds = {to_hex(p.get_facecolor()): p.get_x() for p in axes.patches if p.get_height() > 1}
    assert [round(grounds[colour.lower()] + 0.48, 6) for colour in PARTS] == [0, 2, 4]
    words = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert (words["X"], words["bit 0"]) == (3, 4)  # behind the CZ that crosses its wire
    assert axes.texts[3].get_text() == "preparation"


def test_a_long_circuit_goes_on_in_the_next_line():
    axes = circuit_picture(1, [Gate(1, (0,), str(i)) for i in range(FOLD + 4)], "block").axes[0]
    at = {text.get_text(): text.get_position() for text in axes.texts}
    assert at["14"][0] == 14 and at["15"][0] == 0 and at["15"][1] > at["14"][1]  # two lines of fifteen


def test_validation_has_a_panel_of_its_own_and_batches_are_smoothed():
    history = [{"step": i + 1, "cross_entropy": 3.0 + (-1) ** i} for i in range(20)]
    figure = loss_curve(history, [{"step": 0, "validation_nats": 3.2}, {"step": 20, "validation_nats": 3.1}], "run")
    batches, validation = figure.axes
    mean = batches.lines[1].get_ydata()
    assert np.isnan(mean[0]) and set(mean[1:]) == {3.0}  # of two batches
    assert validation.lines[0].get_ydata().tolist() == [3.2, 3.1] and validation.lines[1].get_ydata()[0] == 3.2
    low, high = validation.get_ylim()
    assert high - low < 0.2


def test_histograms_hold_every_angle_and_name_the_medians():
    angles = np.array([1e-6, 1.0, 2.0, 200.0]), np.array([80.0, 90.0, 100.0])
    figure = block_histograms(angles, None, "blocks")
    (axes,) = figure.axes
    assert [round(patch.get_data().values.sum(), 6) for patch in axes.patches] == [100, 100]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "trained: median 1.5 degrees", "Haar-random: median 90 degrees"]  # fmt: skip
    values = np.array([[1.0, 0.0], [0.8, 0.2]]), np.array([[0.5, 0.5]])
    panel = block_histograms(angles, values, "blocks").axes[1]
    assert panel.lines[0].get_ydata().tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("path", ["chip.txt", "nowhere/chip.png"])
def test_what_cannot_be_drawn_to_is_refused(path, tmp_path):
    with pytest.raises(InputError, match=f"--draw .*{path}"):
        check_picture(str(tmp_path / path))
    check_picture(str(tmp_path / "chip.svg"))
