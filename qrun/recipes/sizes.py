"""What a training and its measurements take, from the model's shape alone: memory, disk, arithmetic. No weight is read.

    size(config, shape) -> Size

Bytes of a layer's kept activations were counted with autograd's hooks on transformers' Llama layers of six shapes, in
float32 and bfloat16, and agree with the formula to 2 %; `scripts/rehearse.py` compares whole runs with `Size.memory`.
"""

import time
from dataclasses import dataclass

from qrun.adapters.methods import spec
from qrun.adapters.sites import adapted, sites
from qrun.config.schema import Dtype, ModelConfig, Quantization, ShapeConfig
from qrun.config.verbs import TrainConfig

GIB = 2**30
PROGRAM = GIB  # bytes of Python and its packages
TILE = 3 * 4 * 2**23  # bytes of a piece of the logits and its gradient
STATES = 6  # of each trained number, in float32: value, gradient, two moments of AdamW, the best so far, a copy of it
CELL = 64 * 2**10  # bytes on disk of a finished cell's record
SHARE = 0.5  # of the speed of one wide product that whole steps reach, about
BITS = {Quantization.nf4: 4.5, Quantization.int8: 8.1}  # of a quantised number, with its share of the scales


@dataclass(frozen=True)
class Size:
    """Bytes, but for `parameters` and the FLOP of one step and one evaluation."""

    parameters: int  # of the frozen model
    trained: int
    weights: int
    step: int  # activations kept for the backward pass
    evaluation: int  # activations of one batch of windows
    optimiser: int
    trunk: int  # on disk: hidden states below the first adapted layer
    step_flop: float
    evaluation_flop: float

    @property
    def memory(self) -> int:
        """At the peak, on one device."""
        return PROGRAM + self.weights + self.optimiser + max(self.step, self.evaluation) + TILE


def body(shape: ShapeConfig) -> int:
    """Parameters of all projections."""
    return sum(site.in_features * site.out_features for site in sites(shape))


def parameters(shape: ShapeConfig) -> int:
    """All of the model's: projections, norms, embeddings, and a head where it has its own."""
    tables = 1 if shape.tie_word_embeddings else 2
    norms = (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    return body(shape) + norms + tables * shape.vocab_size * shape.hidden_size


def weight_bytes(model: ModelConfig, shape: ShapeConfig) -> int:
    """Of the frozen model in memory; quantisation is of the projections."""
    width, inside = width_of(model.dtype), body(shape)
    each = BITS[model.quantization] / 8 if model.quantization else width
    return int(inside * each + (parameters(shape) - inside) * width)


def width_of(dtype: Dtype) -> int:
    """Bytes of a number."""
    return 4 if dtype is Dtype.float32 else 2


def layer_bytes(shape: ShapeConfig, width: int) -> float:
    """Bytes a token that a frozen layer keeps for the backward pass of what is below it: norms in float32, the rest in
    the model's type."""
    values = shape.num_key_value_heads * shape.head_dim
    return (8 + 2.25 * width) * shape.hidden_size + 2 * width * values + 3 * width * shape.intermediate_size


def size(config: TrainConfig, shape: ShapeConfig) -> Size:
    """Of one training and one evaluation of it. Raises InputError for sites that the model does not have."""
    t, e, width = config.training, config.evaluation, width_of(config.model.dtype)
    selected = adapted(shape, config.adapter)
    first = min(site.layer for site in selected)
    above = shape.num_hidden_layers - first
    tokens = t.batch * t.context
    kept = above * layer_bytes(shape, width)
    if t.gradient_checkpointing:
        kept = above * shape.hidden_size * width + layer_bytes(shape, width)
    ctx = config.protocol.ctx or shape.max_position_embeddings
    scored = e.max_tokens or 300_000  # WikiText-2's test text, about
    at_once = min(e.batch * ctx, scored)
    passing = width * (4 * shape.hidden_size + 3 * shape.intermediate_size) + 8 * shape.hidden_size
    trained = spec(config.adapter.method).count(config.adapter, selected) or 0
    visited = t.steps * tokens * t.accumulation + t.eval_tokens + scored
    head, share = shape.hidden_size * shape.vocab_size, above / shape.num_hidden_layers
    return Size(
        parameters=parameters(shape), trained=trained, weights=weight_bytes(config.model, shape),
        step=int(tokens * kept), evaluation=int(at_once * passing), optimiser=4 * STATES * trained,
        trunk=int(min(config.cache.gib * GIB, visited * shape.hidden_size * width)) if first else 0,
        step_flop=t.accumulation * tokens * (2.0 * body(shape) * (1 + share) + 4.0 * head),
        evaluation_flop=scored * (2.0 * body(shape) + 2.0 * head),
    )  # fmt: skip


def speed(model: ModelConfig, shape: ShapeConfig, seconds: float = 0.5) -> float:
    """FLOP a second of the model's widest product on its device and in its type, measured for so long; torch is
    imported here. Raises InputError for a device that is not there."""
    import torch

    from qrun.language.models import device_of

    device, dtype = device_of(model.device), getattr(torch, model.dtype.value)
    x = torch.randn(512, shape.hidden_size, device=device, dtype=dtype)
    w = torch.randn(shape.intermediate_size, shape.hidden_size, device=device, dtype=dtype)
    each, done, spent = 2.0 * x.shape[0] * w.numel(), 0, 0.0
    torch.nn.functional.linear(x, w).sum().item()  # the first call sets up its library
    started = time.perf_counter()
    while spent < seconds:
        torch.nn.functional.linear(x, w)[0, 0].item()  # waits for a GPU
        done, spent = done + 1, time.perf_counter() - started
    return each * done / spent
