"""Scaled rotations of output pairs against their formula."""

import pytest
import torch

from qrun.adapters.methods import spec
from qrun.adapters.sites import select, sites
from qrun.config.schema import AdapterConfig
from qrun.errors import InputError

ROAD = spec("road")


def config(**options):
    return AdapterConfig(method="road", options=options)


def test_a_pair_of_outputs_is_turned_by_its_angle_and_stretched_by_its_scale(tiny):
    chosen = select(sites(tiny.shape), ["q_proj"], ["1"])
    adapter = ROAD.attach(tiny.model, chosen, config())
    (module,) = adapter.modules.values()
    theta, alpha = (next(p for n, p in adapter.tensors().items() if word in n) for word in ("theta", "alpha"))
    theta.data.normal_()
    alpha.data.normal_()
    x = torch.randn(5, 32)
    pairs = torch.view_as_complex(module.base_layer(x).reshape(5, 16, 2))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones(16), theta) * alpha).reshape(5, 32)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("variant", "per_channel"), [("road_1", 1), ("road_2", 2), ("road_4", 4)])
def test_variants_have_one_two_and_four_parameters_a_channel(tiny, variant, per_channel):
    every, size = sites(tiny.shape), config(variant=variant, group_size=8)
    assert ROAD.count(size, every) == per_channel * 448 == ROAD.attach(tiny.model, every, size).count()
    assert ROAD.label(size) == f"road{per_channel}"


@pytest.mark.parametrize(
    ("word", "given"), [("variant", "road_3"), ("group_size", 3), ("group_size", 0), ("group_size", 32)]
)
def test_options_that_do_not_fit_are_refused_by_name(tiny, word, given):
    with pytest.raises(InputError, match=rf"adapter\.options\.{word}={given}: "):
        ROAD.check(config(**{word: given}), sites(tiny.shape))
