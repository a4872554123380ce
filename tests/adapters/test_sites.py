import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from qrun.adapters.sites import adapted, check_divides, parameters, select, sites
from qrun.config.compose import compose
from qrun.config.schema import PROJECTIONS, Side
from qrun.errors import InputError
from qrun.language.models import model_shape, read_shape


def shape(model):
    return model_shape(compose("perplexity", [f"model={model}"]).model)


def test_llama_v_proj_with_4_x_4_blocks_has_6144_parameters():
    config = compose("train", ["model=llama", "adapter=paper"])
    selected = select(sites(model_shape(config.model)), config.adapter.projections, config.adapter.layers)
    assert [s.name for s in selected] == ["layers.31.self_attn.v_proj"]
    assert parameters(selected, 4, Side.input) == 6144
    assert parameters(selected, 4, Side.output) == 1536


def test_smollm2_has_210_sites_and_the_counts_of_the_table():
    every = sites(shape("smollm2"))
    assert len(every) == 210
    assert {b: parameters(every, b, Side.input) for b in (2, 4, 8, 16, 32, 64)} == {
        2: 74_880, 4: 224_640, 8: 524_160, 16: 1_123_200, 32: 2_321_280, 64: 4_717_440
    }  # fmt: skip
    assert parameters(every, 4, Side.output) == 233_280
    assert parameters(select(every, ["v_proj"], ["last"]), 4, Side.input) == 864


@pytest.mark.data
def test_stated_smollm2_shapes_are_those_of_the_real_config_files(shared):
    for model, path in (("smollm2", "config.json"), ("smollm2_instruct", "instruct/config.json")):
        assert shape(model) == read_shape(json.loads((shared / "smollm2-135m-tokenizer" / path).read_text()))


def test_layers_are_chosen_by_word_number_and_range():
    every = sites(shape("nano"))
    assert {s.layer for s in select(every, PROJECTIONS, ["0", "3-4", "last"])} == {0, 3, 4, 5}
    assert {s.layer for s in select(every, ["q_proj"], ["first"])} == {0}
    with pytest.raises(InputError, match="the model has layers 0-5"):
        select(every, PROJECTIONS, ["2-6"])


def test_a_block_dimension_that_does_not_divide_names_the_site_and_the_alternatives():
    every = sites(shape("nano"))
    with pytest.raises(
        InputError,
        match=r"adapter.dim=24: does not divide the input width 512 of layers.0.mlp.down_proj.*: 2, 4, 8, 16, 32, 64$",
    ):
        check_divides(every, 24, Side.input)
    check_divides(select(every, ["q_proj"], ["all"]), 24, Side.input)


def test_site_shapes_are_those_of_the_real_module_tree(nano):
    for site in sites(nano.shape):
        module = nano.model.get_submodule(f"model.{site.name}")
        assert (module.in_features, module.out_features) == (site.in_features, site.out_features)


def test_a_count_of_sites_begins_with_the_papers_and_grows_by_adding():
    model, adapter = shape("smollm2"), compose("train", []).adapter
    sets = [{s.name for s in adapted(model, replace(adapter, count=n))} for n in (1, 2, 4, 16, 64, 210)]
    assert sets[0] == {"layers.29.self_attn.v_proj"} and sets[-1] == {s.name for s in sites(model)}
    assert all(small < large for small, large in pairwise(sets)) and list(map(len, sets)) == [1, 2, 4, 16, 64, 210]
    some = adapted(model, replace(adapter, count=64))
    assert some == sorted(some, key=lambda s: (s.layer, PROJECTIONS.index(s.projection)))  # order of the forward pass
    kinds = Counter(s.projection for s in some)
    thirds = Counter(s.layer // 10 for s in some)
    assert min(kinds.values()) >= 8 and max(kinds.values()) <= 11 and set(thirds.values()) <= {20, 21, 22, 23}


def test_orders_of_sites_begin_elsewhere_and_are_as_even():
    model, adapter = shape("smollm2"), compose("train", []).adapter
    firsts = [adapted(model, replace(adapter, count=1, order=n))[0].name for n in range(5)]
    assert firsts[0] == "layers.29.self_attn.v_proj" and len(set(firsts)) == 5
    for n in (1, 2):
        sets = [{s.name for s in adapted(model, replace(adapter, count=k, order=n))} for k in (1, 4, 64, 210)]
        assert all(small < large for small, large in pairwise(sets))
        kinds = Counter(s.projection for s in adapted(model, replace(adapter, count=64, order=n)))
        assert min(kinds.values()) >= 8 and max(kinds.values()) <= 11
    with pytest.raises(InputError, match=r"adapter.order=1: it orders the sites of adapter.count"):
        replace(adapter, order=1)


def test_more_sites_than_there_are_is_refused():
    few = replace(compose("train", []).adapter, projections=["v_proj"], count=7)
    with pytest.raises(InputError, match=r"adapter.count=7: projections and layers choose 6 sites"):
        adapted(shape("nano"), few)
