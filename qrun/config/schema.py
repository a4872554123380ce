"""Every key a user can set, with its type and range. Checked here, before anything heavy is imported.

A dataclass per config group, that of `noise` in quantum/noise.py; verbs.py puts them together. `__post_init__` raises
InputError with the key, what was given and what is possible. The YAML files in configs/ hold the defaults of each
option and explain the trade-offs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from qrun.adapters.methods import names, spec
from qrun.errors import InputError
from qrun.quantum.devices import KINDS


class Dtype(Enum):
    """Type the frozen weights are loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Side(Enum):
    """Where Q stands beside the frozen weight W."""

    input = "input"  # y = W Q x, the paper's position
    output = "output"  # y = Q W x


class ProtocolKind(Enum):
    """How a perplexity is computed; evaluation/protocols.py has the definitions."""

    fixed_window = "fixed_window"
    hf_strided = "hf_strided"
    lm_eval_wikitext = "lm_eval_wikitext"


class Split(Enum):
    """Part of a corpus."""

    train = "train"
    validation = "validation"
    test = "test"


def require(condition: bool, key: str, given: object, possible: str) -> None:
    """Raise InputError with the key, what was given and what is possible."""
    if not condition:
        raise InputError(f"{key}={given}: {possible}")


def need(config: object, key: str, holds: bool, possible: str) -> None:
    """`require` for a field of a group's dataclass, `key` being `group.field`."""
    given = getattr(config, key.rpartition(".")[2])
    given = given.value if isinstance(given, Enum) else "true" if given is True else given
    require(holds, key, given, possible)


def at_least(config: object, least: int, *keys: str, null: str = "") -> None:
    """`need` for numbers of `least` or more; `null` says what null means where it is allowed."""
    for key in keys:
        value = getattr(config, key.rpartition(".")[2])
        need(config, key, bool(null) if value is None else value >= least, f"give {least} or more{null}")


def require_name(key: str, given: str | None) -> None:
    """A name becomes a folder and a part of run names, so it must not lead to another place. Unset ones pass."""
    if given is not None and given != MISSING:
        plain = re.fullmatch(r"[A-Za-z0-9._-]{1,120}", given) is not None and given not in (".", "..")
        shown = given if given.isprintable() else repr(given)
        require(plain, key, shown, "use 1 to 120 letters a-z and A-Z, digits, '.', '_' or '-', but not '.' or '..'")


@dataclass
class ShapeConfig:
    """Widths of a Llama-type decoder: enough to find its sites and count parameters without its weights."""

    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    head_dim: int = MISSING
    vocab_size: int = MISSING
    max_position_embeddings: int = MISSING


@dataclass
class ModelConfig:
    """Group `model`: which frozen model, from where, in which type."""

    name: str = MISSING
    hub_id: str | None = None  # "owner/name" on the hub
    revision: str | None = None  # commit of the hub repository
    path: str | None = None  # a local folder in the hub's layout; wins over hub_id
    embedded: bool = False  # shipped inside the package
    gated: bool = False  # the hub asks for a licence click and a token
    dtype: Dtype = Dtype.float32
    device: str = "auto"  # cpu, cuda, cuda:1, mps or auto
    shape: ShapeConfig | None = None  # known shape, for planning without weights

    def __post_init__(self) -> None:
        require_name("model.name", self.name)
        need(self, "model.path", bool(self.embedded or self.hub_id or self.path), "give the folder of a local model")
        known = self.device in ("auto", "cpu", "cuda", "mps") or self.device.startswith("cuda:")
        need(self, "model.device", known, "use auto, cpu, cuda, cuda:N or mps")


@dataclass
class DataConfig:
    """Group `data`: which text, from where, how it is split."""

    name: str = MISSING
    source: str = MISSING  # pydoc, libdocs, wikitext2 or text
    hub_id: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    path: str | None = None
    validation: float = 0.1  # share of documents, where the source has no splits of its own
    test: float = 0.1
    documents: int | None = None  # most of each split, drawn and ordered by their hash; null keeps all in their order

    def __post_init__(self) -> None:
        require_name("data.name", self.name)
        at_least(self, 2, "data.documents", null=", or null for all")
        known = self.source in ("pydoc", "libdocs", "wikitext2", "text")
        need(self, "data.source", known, "use pydoc, libdocs, wikitext2 or text")
        need(self, "data.path", self.source != "text" or bool(self.path), "data=text needs data.path=<file or folder>")
        need(self, "data.validation", 0 < self.validation < 1, "give a share between 0 and 1")
        need(self, "data.test", 0 < self.test < 1 - self.validation, "give a share between 0 and 1 - data.validation")


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class AdapterConfig:
    """Group `adapter`: method, block dimension, sites, side."""

    method: str = "cayley"  # a module of adapters/methods
    dim: int = 4  # block dimension b
    rank: int = 1  # of low-rank methods
    factors: int = 2  # butterfly factors of BOFT
    projections: Any = "all"  # all, attention, mlp, or a list of projection names
    layers: Any = "all"  # all, first, last, a range "2-5", a number, or a list of those
    side: Side = Side.input
    sign_constrained: bool = False  # forward pass y = sign(x) * |Qx|
    options: dict[str, Any] = field(default_factory=dict)  # the method's own words

    def __post_init__(self) -> None:
        need(self, "adapter.dim", self.dim >= 2, "a block needs dimension 2 or more (powers of two run as circuits)")
        at_least(self, 1, "adapter.rank", "adapter.factors")
        method = spec(self.method)
        having = " and ".join(name for name in names() if spec(name).circuits)
        only = f"only methods {having} have it, not {self.method}; leave it at"
        need(self, "adapter.side", method.circuits or self.side is Side.input, f"{only} input")
        need(self, "adapter.sign_constrained", method.circuits or not self.sign_constrained, f"{only} false")
        for word, value in self.options.items():
            possible = ", ".join(method.options) or f"method {self.method} has none"
            require(word in method.options, f"adapter.options.{word}", value, f"possible words: {possible}")
            kind = type(method.options[word])
            require(type(value) is kind, f"adapter.options.{word}", repr(value), f"give a {kind.__name__}")
        self.options = {**method.options, **self.options}
        groups = {"all": PROJECTIONS, "attention": PROJECTIONS[:4], "mlp": PROJECTIONS[4:]}
        given = self.projections
        listed = isinstance(given, Sequence) and not isinstance(given, str)
        chosen = tuple(given) if listed else groups.get(str(given), (given,))
        possible = f"use all, attention, mlp or a list of {', '.join(PROJECTIONS)}"
        need(self, "adapter.projections", all(name in PROJECTIONS for name in chosen), possible)
        need(self, "adapter.projections", bool(chosen), "name at least one projection")
        self.projections = [p for p in PROJECTIONS if p in chosen]
        self.layers = _layers(self.layers)


def _layers(given: Any) -> list[str]:
    """A list of 'all', 'first', 'last', 'N' or 'A-B'; ranges are checked against the model later."""
    words = [str(w).strip() for w in (given if isinstance(given, list | tuple) else [given])]
    possible = "use all, first, last, a layer number, a range such as 2-5, or a list of those"
    for word in words:
        first, dash, last = word.partition("-")
        number = first.isdigit() and (last.isdigit() and int(first) <= int(last) if dash else True)
        require(number or word in ("all", "first", "last"), "adapter.layers", given, possible)
    require(bool(words), "adapter.layers", given, "name at least one layer")
    return words


@dataclass
class TrainingConfig:
    """Group `training`: optimiser, schedule, loss, evaluation while training."""

    steps: int = 80
    batch: int = 8  # windows per forward pass
    accumulation: int = 1  # forward passes per optimiser step
    context: int = 512  # tokens per window
    lr: float = 0.006
    warmup: int = 10  # steps of linear warm-up
    final_lr: float = 0.05  # share of lr at the end of the cosine
    weight_decay: float = 0.0
    clip: float = 1.0  # norm of the gradient; 0 switches clipping off
    distill_weight: float = 0.0  # share of the distillation loss; 0 is plain cross-entropy
    temperature: float = 2.0
    kept: float = 1.0  # noise-aware: share of counts that gates leave, in the forward pass of training; 1 is without
    eval_every: int = 20
    eval_tokens: int = 16384  # validation tokens per evaluation while training
    checkpoint_every: int = 20
    divergence: float = 3.0  # stop when a step's loss exceeds the first by this many nats
    threads: int = 0  # CPU threads; 0 leaves torch's choice
    gradient_checkpointing: bool = False  # layers keep their input alone and compute twice: less memory, more time

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulation", "eval_every", "eval_tokens", "checkpoint_every")
        at_least(self, 1, *(f"training.{key}" for key in counts))
        need(self, "training.context", self.context >= 2, "a window needs 2 tokens or more")
        for key in ("lr", "temperature", "divergence"):
            need(self, f"training.{key}", getattr(self, key) > 0, "give a number above 0")
        at_least(self, 0, *(f"training.{key}" for key in ("warmup", "weight_decay", "clip", "threads")))
        need(self, "training.kept", 0 < self.kept <= 1, "give a share above 0 and up to 1")
        for key in ("distill_weight", "final_lr"):
            need(self, f"training.{key}", 0 <= getattr(self, key) <= 1, "give a number from 0 to 1")


@dataclass
class ProtocolConfig:
    """Group `protocol`: how the reported perplexity is computed."""

    kind: ProtocolKind = ProtocolKind.fixed_window
    ctx: int | None = None  # tokens per window; null is the model's number of positions
    stride: int | None = None  # hf_strided only

    def __post_init__(self) -> None:
        stride, key = self.stride, "protocol.stride"
        need(self, "protocol.ctx", self.ctx is None or self.ctx >= 2, "a window needs 2 tokens or more")
        if self.kind is ProtocolKind.hf_strided:
            need(self, key, stride is not None and stride >= 1, "hf_strided needs a stride of 1 or more")
            gaps = f"must not exceed protocol.ctx={self.ctx}, or tokens between windows are never scored"
            need(self, key, self.ctx is None or (stride or 0) <= self.ctx, gaps)
        else:
            need(self, key, stride is None, f"{self.kind.value} has no stride; use protocol=hf_strided")


class Sample(Enum):
    """Which text of a split is measured."""

    whole = "whole"  # one running text, as published perplexities; max_tokens keeps its head
    passages = "passages"  # windows that keep to one document, drawn by hash, from every document one before a second


@dataclass
class EvaluationConfig:
    """What is measured with the protocol, and the bootstrap behind its interval."""

    split: Split = Split.test
    sample: Sample = Sample.whole
    batch: int = 8  # windows per forward pass
    max_tokens: int | None = None  # scored at most, about; null is all
    resamples: int = 9999  # of the bootstrap

    def __post_init__(self) -> None:
        at_least(self, 1, "evaluation.batch")
        at_least(self, 2, "evaluation.max_tokens", null=", or null for all")
        need(self, "evaluation.resamples", self.resamples >= 99, "an interval needs 99 resamples or more")


class CompressionKind(Enum):
    """How weights are factored; compression/factors.py has the definitions."""

    svd = "svd"
    mpo = "mpo"


class Profile(Enum):
    """Which ratio each site gets."""

    uniform = "uniform"
    sensitivity = "sensitivity"  # measured site by site on calibration text


@dataclass
class CompressionConfig:
    """Group `compression`: what is left of the projections' parameters, and how."""

    kind: CompressionKind = CompressionKind.svd
    ratio: float = 0.5  # parameters kept, as a share of the projections'
    bond: int | None = None  # rank or bond dimension for every site; wins over ratio
    cores: int = 2  # of mpo
    activation_aware: bool = False  # svd: least error in the output over calibration text
    profile: Profile = Profile.uniform
    calibration: int = 4096  # training tokens for whitening and the profile

    @property
    def label(self) -> str:
        """`svd`, `asvd`, `mpo2-profiled`: part of names."""
        cores = str(self.cores) if self.kind is CompressionKind.mpo else ""
        profiled = "-profiled" if self.profile is Profile.sensitivity else ""
        return f"{'a' if self.activation_aware else ''}{self.kind.value}{cores}{profiled}"

    def __post_init__(self) -> None:
        svd, whole = self.kind is CompressionKind.svd, self.profile is Profile.uniform
        aware = svd or not self.activation_aware
        need(self, "compression.ratio", 0 < self.ratio < 1, "give a share of the parameters between 0 and 1")
        at_least(self, 1, "compression.bond", null=", or null to use the ratio")
        need(self, "compression.cores", 2 <= self.cores <= 8, "give 2 to 8")
        need(self, "compression.cores", not (svd and self.cores != 2), "svd has two factors; use compression=mpo")
        need(self, "compression.activation_aware", aware, "only svd has an activation-aware form here")
        shared = "a profile shares out a ratio; set compression.bond=null"
        need(self, "compression.profile", whole or self.bond is None, shared)
        need(self, "compression.calibration", self.calibration >= 64, "give 64 tokens or more")


@dataclass
class CacheConfig:
    """Hidden states of frozen layers, kept in ~/.cache/qrun/trunks. Changes no number."""

    gib: float = 4.0  # most on disk; 0 keeps none

    def __post_init__(self) -> None:
        at_least(self, 0, "cache.gib")


@dataclass
class SavedAdapterConfig:
    """An adapter that exists already."""

    path: str | None = None  # folder written by `qrun train`; null measures the model alone


class Precision(Enum):
    """Arithmetic of the fast simulators."""

    float32 = "float32"
    float64 = "float64"


class Sign(Enum):
    """Whose signs an estimate gets; counts carry none."""

    input = "input"  # sign(x), the paper's rule
    exact = "exact"  # sign(Q x), a control that needs the answer
    two_settings = "two_settings"  # counted: half the shots after RY(pi/2) on every qubit
    reference = "reference"  # counted: beside a known amplitude on one more qubit


class Estimator(Enum):
    """How frequencies become magnitudes; quantum/estimates.py has the formulas."""

    sqrt = "sqrt"  # of the frequencies, the paper's rule
    calibrated = "calibrated"  # readout errors and one depolarising rate a block taken out; knows nothing of x
    soft = "soft"  # calibrated, signs by tanh: leans on x
    posterior = "posterior"  # calibrated, mean under a prior around x: leans on x


class Rates(Enum):
    """Where the readout errors of a calibrated estimate come from; depolarising rates are always counted."""

    measured = "measured"  # counted: all |0> and all |1>
    properties = "properties"  # as the noise or the processor's calibration says


@dataclass
class EstimateConfig:
    """Group `estimate`: how counts become magnitudes."""

    kind: Estimator = Estimator.sqrt
    rates: Rates = Rates.measured

    @property
    def leans(self) -> bool:
        """Whether it draws on x beyond its signs."""
        return self.kind in (Estimator.soft, Estimator.posterior)


@dataclass
class SignsConfig:
    """Group `signs`: whose signs the magnitudes get."""

    kind: Sign = Sign.input


DEVICES = ("exact", *KINDS)  # exact is the matrix product, no device
PROCESSORS = ("fake", "ibm")  # they only count
CIRCUITS = ("line", "qiskit", "merged", "direct")  # quantum/circuits.py says how each writes Q


class Mode(Enum):
    """How the jobs of a call reach an IBM processor."""

    job = "job"  # each through the queue
    batch = "batch"  # together
    session = "session"  # together, with the processor reserved, and billed, while it is open


class Allocation(Enum):
    """How the shots of a token are shared out among its slices."""

    equal = "equal"
    effect = "effect"  # in proportion to |x_j| |W_j|: the least error behind the projection for the same total


DECOUPLING = ("XX", "XpXm", "XY4")


@dataclass
class DeviceConfig:
    """Group `device`: who computes Q x."""

    kind: str = "exact"
    shots: int | None = 8192  # per circuit; null gives exact probabilities where the device can
    backend: str | None = None  # which simulator or processor of that kind
    circuit: str = "line"  # how Q is written; config group `circuit`
    coupling: str = "line"  # which qubits a circuit's CZ may join: line, neighbours on a path; full, every pair
    keep: float = 0.8  # share of a calibrated chip's places that is used, the best ones
    allocation: Allocation = Allocation.equal  # of shots; a processor counts all blocks of a circuit as often
    takes_noise: bool = False  # what the device is, not a choice: it has a noise model
    precision: Precision = Precision.float32
    budget_s: float | None = None  # most QPU seconds of all jobs of a results folder, on fake and ibm
    repetition: int = 0  # another number measures everything anew, on fake and ibm
    mode: Mode = Mode.job  # on ibm
    options: dict[str, Any] = field(default_factory=dict)  # of the sampler on ibm, of the plugin on pennylane

    def __post_init__(self) -> None:
        counts = self.shots is not None or self.kind not in PROCESSORS
        budget = self.budget_s is None or self.budget_s > 0
        need(self, "device.kind", self.kind in DEVICES, f"use {', '.join(DEVICES)}")
        at_least(self, 1, "device.shots", null=", or null for exact probabilities")
        need(self, "device.shots", counts, f"{self.kind} only counts; give a number of shots")
        need(self, "device.circuit", self.circuit in CIRCUITS, f"use {', '.join(CIRCUITS)}")
        need(self, "device.coupling", self.coupling in ("line", "full"), "use line or full")
        chips = self.kind not in PROCESSORS or self.coupling == "line"
        need(self, "device.coupling", chips, f"{self.kind} has neighbours only; use line")
        own = self.kind in ("shots", "noisy") or (self.kind == "aer" and self.backend != "pennylane")
        free = own or self.allocation is Allocation.equal
        need(self, "device.allocation", free, f"{self.kind} counts all alike; use equal")
        need(self, "device.keep", 0 < self.keep <= 1, "give a share of the places, above 0 and up to 1")
        need(self, "device.budget_s", budget, "give seconds above 0, or null for no limit")
        at_least(self, 0, "device.repetition")
        only = f"only device=ibm has it, not {self.kind}; leave it"
        need(self, "device.mode", self.kind == "ibm" or self.mode is Mode.job, f"{only} at job")
        free = self.kind in ("ibm", "pennylane")
        need(self, "device.options", free or not self.options, f"{self.kind} has none; leave it empty")
        if self.kind == "pennylane":  # a plugin's own words, which only the plugin knows
            return
        choices = ", ".join(DECOUPLING)
        words = {
            "dynamical_decoupling": (lambda v: v in (None, *DECOUPLING), f"use {choices} or null"),
            "gate_twirling": (lambda v: isinstance(v, bool), "use true or false"),
            "measure_twirling": (lambda v: isinstance(v, bool), "use true or false"),
            "rep_delay_us": (lambda v: v is None or (type(v) in (int, float) and v > 0), "give microseconds above 0"),
        }
        for word, value in self.options.items():
            require(word in words, f"device.options.{word}", value, f"possible words: {', '.join(words)}")
            require(words[word][0](value), f"device.options.{word}", value, words[word][1])
        self.options = {word: value for word, value in self.options.items() if value not in (None, False)}


class LauncherKind(Enum):
    """Where cells run."""

    local = "local"
    ray = "ray"


@dataclass
class LauncherConfig:
    """Group `launcher`: who computes the cells of a study. The results are the same with any."""

    kind: LauncherKind = LauncherKind.local
    workers: int | None = None  # processes, or Ray tasks at once; null: as many as the cores allow, one on a GPU
    threads: int = 1  # of torch in each process
    gpus: float = 0.0  # share of a GPU that a Ray task takes
    address: str | None = None  # of a Ray cluster; null starts Ray on this machine

    def __post_init__(self) -> None:
        at_least(self, 1, "launcher.workers", null=", or null")
        at_least(self, 1, "launcher.threads")
        at_least(self, 0, "launcher.gpus")


@dataclass
class QuestionsConfig:
    """Group `questions`: which questions, and how their prompts look."""

    name: str = MISSING
    source: str = MISSING  # continuation or mmlu
    hub_id: str | None = None
    revision: str | None = None
    path: str | None = None  # folder with <subject>_test.csv (and <subject>_dev.csv) or parquet files, or one such file
    subjects: list[str] = field(default_factory=list)  # of mmlu; empty takes all
    pick: list[int] = field(default_factory=list)  # one index per subject, instead of all its questions
    reported: list[str] = field(default_factory=list)  # the paper's answers to the picked questions, for the table
    limit: int | None = None  # first so many questions
    examples: int = 0  # of the dev split, before each question of mmlu
    characters: int = 160  # of each passage of continuation
    context: int = 400  # characters before it

    def __post_init__(self) -> None:
        require_name("questions.name", self.name)
        picked = not self.pick or len(self.pick) == len(self.subjects)
        need(self, "questions.source", self.source in ("continuation", "mmlu"), "use continuation or mmlu")
        at_least(self, 1, "questions.limit", null=", or null for all")
        need(self, "questions.examples", 0 <= self.examples <= 5, "give 0 to 5")
        at_least(self, 20, "questions.characters")
        at_least(self, 40, "questions.context")
        need(self, "questions.pick", picked, "give one index per subject")
