"""The noise a user sets: its channels beside Qiskit's own, its ranges, and how it moves along an axis."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.quantum_info import Kraus, SuperOp
from qiskit_aer.noise import depolarizing_error, thermal_relaxation_error
from quantum_support import FULL

from qrun.config.compose import compose
from qrun.errors import InputError
from qrun.quantum.noise import AXES, CHANNELS, Dephasing, Depolarizing, Noise, Rates, Relaxation
from qrun.quantum.places import everywhere
from qrun.quantum.wiring import Wiring

ALL = dataclasses.replace(FULL, dephasing=0.01)
PAULIS = [np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])]


def preset(name):
    return compose("circuit", [f"noise={name}"]).noise


def superoperator(operators):
    return SuperOp(Kraus([np.asarray(k, complex) for k in operators])).data


def changed(before, after):
    """Names of the fields that differ, but for the name itself."""
    return {f.name for f in dataclasses.fields(Noise) if getattr(before, f.name) != getattr(after, f.name)} - {"name"}


@pytest.mark.parametrize("qubits", [1, 2])
@pytest.mark.parametrize("times", [(20.0, 12.0), (20.0, None), (None, 12.0), (6.0, 12.0)])
def test_channels_are_qiskits_own(qubits, times):
    noise = Noise(sx=3e-3, cz=1e-2, t1_us=times[0], t2_us=times[1], sx_ns=36, cz_ns=68)
    p = {1: 2 * 3e-3, 2: 4 * 1e-2 / 3}[qubits]
    t1 = 1e3 * times[0] if times[0] else np.inf
    t2 = 1e3 * times[1] if times[1] else 2 * t1
    thermal = thermal_relaxation_error(t1, t2, {1: 36, 2: 68}[qubits])
    theirs = [depolarizing_error(p, qubits), thermal if qubits == 1 else thermal.tensor(thermal)]
    for ours, error in zip(noise.kraus(qubits), theirs, strict=True):
        np.testing.assert_allclose(superoperator(ours), SuperOp(error).data, atol=1e-12)


def test_an_average_infidelity_is_what_a_calibration_reports():
    from qiskit.quantum_info import average_gate_fidelity

    for qubits, rate in ((1, 3e-3), (2, 1e-2)):
        (operators,) = Noise(sx=3e-3, cz=1e-2).kraus(qubits)
        assert 1 - average_gate_fidelity(Kraus(operators)) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("qubits", [1, 2])
@pytest.mark.parametrize("kind", CHANNELS, ids=lambda kind: kind.__name__)
def test_rates_of_a_channel_are_its_kraus_operators_in_the_pauli_picture(kind, qubits):
    channel = kind(ALL, qubits)
    (operators,) = [k for k, c in zip(ALL.kraus(qubits), ALL.channels(qubits), strict=True) if type(c) is kind]
    t, l, shift, keep = channel.rates()  # noqa: E741
    single = np.array([[1, 0, 0, 0], [0, t, 0, 0], [0, 0, t, 0], [shift, 0, 0, l]])
    expected = single if qubits == 1 else np.kron(single, single) @ np.diag([1] + [keep] * 15)
    strings = PAULIS if qubits == 1 else [np.kron(a, b) for a in PAULIS for b in PAULIS]
    transfer = [[sum(np.trace(a @ k @ b @ k.conj().T) for k in operators) for b in strings] for a in strings]
    np.testing.assert_allclose(np.array(transfer) / 2**qubits, expected, atol=1e-14)


def test_a_phase_flip_shrinks_x_and_y_alone():
    assert Dephasing(Noise(dephasing=0.1), 2).rates() == Rates(0.8, 1.0, 0.0, 1.0)
    assert Noise(dephasing=0.1).rates(2) == Rates(transverse=0.8)


def test_rates_of_successive_channels_multiply_and_a_joint_one_never_follows_a_shift():
    one, two = Depolarizing(FULL, 1).rates(), Relaxation(FULL, 1).rates()
    assert FULL.rates(1) == Rates(
        one.transverse * two.transverse, one.longitudinal * two.longitudinal, 1 - np.exp(-0.0018)
    )
    assert two.then(one).shift == one.longitudinal * two.shift
    with pytest.raises(AssertionError, match="cannot follow"):
        Relaxation(FULL, 2).rates().then(Depolarizing(FULL, 2).rates())


def test_gates_are_ideal_without_gate_noise_and_all_is_without_any():
    reading = Noise(read_1_given_0=0.1, t1_us=10.0)  # a time that no gate takes does nothing
    assert reading.gates_ideal and not reading.ideal and Noise(name="x", t1_us=10.0).ideal
    assert not Noise(cz=1e-9).gates_ideal and not Noise(t2_us=10.0, sx_ns=1).gates_ideal and not Noise(block=0.1).ideal


def test_the_digest_is_of_what_acts_and_nothing_else():
    assert dataclasses.replace(ALL, name="other", date="today", source="me").digest == ALL.digest
    assert Noise(sx_ns=36, cz_ns=68).digest == Noise().digest
    values = {f.name: getattr(ALL, f.name) for f in dataclasses.fields(Noise) if f.type in (float, float | None)}
    for key in values.keys() - {"factor"}:
        assert dataclasses.replace(ALL, **{key: values[key] * 0.9}).digest != ALL.digest, key


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cz": 0.8}, "noise.cz=0.8: give a rate from 0 to 0.75"),
        ({"sx": -0.1}, "noise.sx=-0.1: give a rate from 0 to 0.5"),
        ({"dephasing": 0.6}, "noise.dephasing=0.6: give a rate from 0 to 0.5"),
        ({"read_1_given_0": 0.6}, "noise.read_1_given_0=0.6: give a rate from 0 to 0.5"),
        ({"block": 1.5}, "noise.block=1.5: give a rate from 0 to 1"),
        ({"t1_us": 10.0, "t2_us": 21.0}, "noise.t2_us=21.0: unphysical, T2 cannot exceed 2 noise.t1_us = 20"),
        ({"t1_us": 0.0}, "noise.t1_us=0.0: give a time above 0, or null for none"),
        ({"cz_ns": -1.0}, "noise.cz_ns=-1.0: give a duration of 0 or more"),
        ({"factor": -1.0}, "noise.factor=-1.0: give 0 or more"),
        (
            {"read_0_given_1": 0.1, "factor": 6.0},
            "noise.read_0_given_1=0.6000000000000001 (times noise.factor=6)",
        ),
        ({"block": 0.3, "factor": 4.0}, "noise.block=1.2 (times noise.factor=4): give a rate from 0 to 1"),
    ],
)
def test_unphysical_noise_is_refused_by_name(values, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Noise(**values)


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(Noise) if f.type in (float, float | None)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(key, value):
    with pytest.raises(InputError, match=f"noise.{key}="):
        Noise(**{key: value})


def test_a_factor_multiplies_rates_and_shortens_times_once():
    ten = dataclasses.replace(ALL, name="full", factor=10.0)
    assert (ten.sx, ten.cz, ten.t1_us, ten.t2_us, ten.read_0_given_1, ten.block, ten.dephasing) == (
        0.03, 0.1, 2.0, 1.2, 0.5, 0.3, 0.1,
    )  # fmt: skip
    assert (ten.sx_ns, ten.factor, ten.name) == (36, 1.0, "full-x10")
    assert dataclasses.replace(ten, date="today").sx == 0.03
    assert dataclasses.replace(FULL, factor=0.0).ideal


def test_a_calibrated_noise_that_is_turned_off_stays_off_at_every_place():
    on = Noise(name="FakeMarrakesh", calibration="FakeMarrakesh")
    words = compose("circuit", ["noise=FakeMarrakesh", "noise.factor=0"]).noise
    for off in (words, on.along("proportional", 0), dataclasses.replace(on, factor=0.0)):
        for noise in (off, dataclasses.replace(off, name="again")):
            one, two, waiting = Wiring(noise).places(2).tables
            assert noise.ideal and np.all(one[..., :2] == 1) and np.all(two[..., [0, 1, 3]] == 1)
            assert not waiting.any()


def test_a_factor_given_in_words_is_applied_once_on_the_way_to_the_config():
    noise = compose("circuit", ["noise=heron_r2", "noise.factor=10"]).noise
    assert (noise.name, noise.cz, noise.t1_us, noise.factor) == ("heron_r2-x10", 0.00264 * 10, 19.7, 1.0)


@settings(deadline=None)
@given(rate=st.floats(1e-8, 0.75), which=st.sampled_from(["paper", "heron_r1", "heron_r2"]))
def test_along_gates_both_kinds_move_together_and_readout_stays(rate, which):
    before = PRESETS[which]
    after = before.along("gates", rate)
    assert after.cz == rate and after.sx / after.cz == pytest.approx(before.sx / before.cz, rel=1e-12)
    assert (after.read_1_given_0, after.read_0_given_1) == (before.read_1_given_0, before.read_0_given_1)
    if before.t1_us:  # decay over a gate is that of a gate longer in proportion
        decay = -np.log(after.rates(2).longitudinal) * before.t1_us
        assert decay == pytest.approx(0.068 * rate / before.cz, rel=1e-6, abs=1e-12)
    assert changed(before, after) <= {"sx", "cz", "sx_ns", "cz_ns"} and re.fullmatch(r"[A-Za-z0-9._-]+", after.name)


PRESETS = {name: preset(name) for name in ("paper", "heron_r1", "heron_r2")}


def test_readout_is_the_presets_own_at_the_lowest_gate_rates():
    assert PRESETS["paper"].along("gates", 1e-5).read_1_given_0 == 0.01
    for rate in (1e-5, 1e-4):
        low = PRESETS["heron_r1"].along("gates", rate)
        assert (low.read_1_given_0, low.read_0_given_1, low.cz) == (0.02, 0.0229, rate)


def test_along_gates_what_both_kinds_share_moves_too():
    after = ALL.along("gates", 0.02)
    assert (after.dephasing, after.block, after.sx, after.sx_ns, after.cz_ns) == (0.02, 0.06, 6e-3, 72, 136)


def test_along_two_qubit_errors_one_qubit_ones_and_readout_stay():
    after = ALL.along("two_qubit", 0.005)
    assert (after.cz, after.cz_ns) == (0.005, 34) and changed(ALL, after) == {"cz", "cz_ns"}
    assert after.rates(1) == ALL.rates(1)


def test_along_one_qubit_errors_there_is_nothing_else():
    after = ALL.along("one_qubit", 1e-3)
    assert (after.sx, after.sx_ns) == (1e-3, 12.0) and after.rates(2) == Rates()
    assert after.ideal is False and after.confusion == ((1, 0), (0, 1)) and after.block == after.dephasing == 0


def test_along_readout_the_mean_is_the_rate_and_gates_are_ideal():
    after = PRESETS["heron_r2"].along("readout", 0.05)
    assert (after.read_1_given_0 + after.read_0_given_1) / 2 == pytest.approx(0.05)
    assert after.read_0_given_1 / after.read_1_given_0 == pytest.approx(0.0134 / 0.00537)
    assert after.gates_ideal and after.block == 0


def test_in_proportion_everything_moves_as_by_a_factor():
    paper, heron = PRESETS["paper"], PRESETS["heron_r2"]
    for rate in (1e-5, 1e-3, 3e-2):
        by, after = rate / 1.78e-3, paper.along("proportional", rate)
        assert (after.sx, after.cz, after.read_1_given_0) == (2.45e-4 * by, 1.78e-3 * by, 0.01 * by)
        assert after.name == f"paper-proportional-{rate:g}"
    assert heron.along("proportional", 0.0264).t1_us == pytest.approx(19.7) and heron.along("proportional", 0).ideal


@pytest.mark.parametrize(
    ("noise", "axis", "rate", "said"),
    [
        ("paper", "proportional", 0.1, "noise=paper axis=proportional rate=0.1: noise.read_1_given_0=0.56"),
        ("paper", "readout", 0.6, "noise=paper axis=readout rate=0.6: noise.read_1_given_0=0.6: give a rate"),
        ("paper", "gates", 0.8, "noise=paper axis=gates rate=0.8: noise.cz=0.8: give a rate from 0 to 0.75"),
        ("depolarizing", "gates", 0.1, "noise=depolarizing axis=gates rate=0.1: its noise.cz is 0"),
        ("gates", "readout", 0.1, "noise=gates axis=readout rate=0.1: its mean readout error is 0"),
        ("none", "one_qubit", 0.1, "noise=none axis=one_qubit rate=0.1: its noise.sx is 0"),
        ("paper", "sideways", 0.1, "noise=paper axis=sideways rate=0.1: use axis gates, two_qubit, one_qubit, readout"),
        ("paper", "gates", -0.1, "noise=paper axis=gates rate=-0.1: give a rate of 0 or more"),
        ("paper", "gates", float("nan"), "noise=paper axis=gates rate=nan: give a rate of 0 or more"),
    ],
)
def test_an_axis_that_cannot_reach_a_rate_says_why(noise, axis, rate, said):
    with pytest.raises(InputError) as caught:
        preset(noise).along(axis, rate)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_at_the_presets_own_rate_leaves_its_values(axis):
    rate = {"one_qubit": ALL.sx, "readout": (ALL.read_1_given_0 + ALL.read_0_given_1) / 2}.get(axis, ALL.cz)
    expected = ALL.only(axis) if axis in ("one_qubit", "readout") else ALL
    assert ALL.along(axis, rate) == expected  # its name too: a study knows the preset's column by it


def test_one_group_of_errors_alone():
    reading, one, two = ALL.only("readout"), ALL.only("one_qubit"), ALL.only("two_qubit")
    assert reading.gates_ideal and reading.confusion == ALL.confusion and reading.block == 0
    for alone, own, other in ((one, 1, 2), (two, 2, 1)):
        expected = dataclasses.replace(ALL, dephasing=0.0).rates(own)
        assert alone.rates(own) == expected and alone.rates(other) == Rates()
        assert alone.confusion == ((1, 0), (0, 1)) and alone.block == 0
    gates = ALL.only("one_qubit", "two_qubit")
    assert gates.rates(1) == ALL.rates(1) and gates.rates(2) == ALL.rates(2) and gates.block == ALL.block
    assert changed(ALL, ALL.only("readout", "one_qubit", "two_qubit")) == set() and ALL.only().ideal
    with pytest.raises(InputError, match="noise group gates: use one_qubit, two_qubit, readout"):
        ALL.only("gates")


def test_uniform_forgets_everything_and_quiet_is_no_noise():
    paper = PRESETS["paper"]
    assert changed(paper, paper.uniform()) == {"block", "read_1_given_0", "read_0_given_1"}
    assert paper.uniform().block == 1 and paper.uniform().confusion == ((1, 0), (0, 1))
    assert paper.quiet() == Noise() and paper.quiet().ideal


def test_the_total_error_of_a_circuit_counts_its_gates_and_readouts():
    counts = {"cz": 3, "sx": 2, "qubits": 2}
    assert Noise(cz=0.03).total_error(counts) == pytest.approx(1 - 0.96**3)
    assert Noise(sx=0.01).total_error(counts) == pytest.approx(1 - 0.98**2)
    assert Noise(read_1_given_0=0.1, read_0_given_1=0.3).total_error(counts) == pytest.approx(1 - 0.8**2)


def test_readout_errors_and_the_circuits_one_channel_act_on_outcomes():
    def measured(noise, p):
        n = p.shape[-1].bit_length() - 1
        return everywhere(noise, n).measured(p, Wiring(noise).circuits(np.eye(2**n)[None]), 0)

    reading = Noise(read_1_given_0=0.1, read_0_given_1=0.3)
    np.testing.assert_allclose(measured(reading, np.eye(2)), [[0.9, 0.1], [0.3, 0.7]])
    np.testing.assert_allclose(measured(reading, np.eye(4)[1]), [0.27, 0.63, 0.03, 0.07])  # qubit 0 is 1
    np.testing.assert_allclose(measured(Noise(block=0.2), np.eye(4)[0]), [0.85, 0.05, 0.05, 0.05])
