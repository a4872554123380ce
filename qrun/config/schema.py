"""Every key a user can set, with its type and range. Checked here, before anything heavy is imported.

A dataclass per config group, those of devices and their readout in devices.py, that of `noise` in quantum/noise.py;
verbs.py puts them together. `__post_init__` raises InputError with the key, what was given and what is possible. The
YAML files in configs/ hold the defaults of each option and explain the trade-offs.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from qrun.adapters.methods import names, spec
from qrun.config.devices import (  # noqa: F401  # modules in cells' keys have them from here
    Allocation,
    DeviceConfig,
    EstimateConfig,
    Estimator,
    Rates,
    Sign,
)
from qrun.config.ranges import at_least, need, require, require_name
from qrun.errors import redacted


class Dtype(Enum):
    """Type the frozen weights are loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(Enum):
    """Numbers that the projections' weights are kept in, by bitsandbytes."""

    nf4 = "nf4"  # 4 bits, NormalFloat with double quantisation
    int8 = "int8"  # 8 bits a row, LLM.int8()


class Spread(Enum):
    """How accelerate spreads a model over GPUs."""

    auto = "auto"
    balanced = "balanced"
    sequential = "sequential"


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
    tie_word_embeddings: bool = False


@dataclass
class ModelConfig:
    """Group `model`: which frozen model, from where, in which type."""

    name: str = MISSING
    hub_id: str | None = None  # "owner/name" on the hub
    revision: str | None = None  # commit of the hub repository
    path: str | None = None  # a local folder in the hub's layout; wins over hub_id
    embedded: bool = False  # shipped inside the package
    instruct: bool = False  # trained to answer in its tokenizer's chat template
    gated: bool = False  # the hub asks for a licence click and a token
    dtype: Dtype = Dtype.float32
    quantization: Quantization | None = None  # of the frozen projections; the adapter's arithmetic is float32
    device: str = "auto"  # cpu, cuda, cuda:1, mps or auto
    device_map: Spread | None = None  # over all GPUs; null: all on model.device
    shape: ShapeConfig | None = None  # known shape, for planning without weights

    def __post_init__(self) -> None:
        require_name("model.name", self.name)
        where = "give the folder of a local model, or set model.hub_id or model.embedded"
        need(self, "model.path", bool(self.embedded or self.hub_id or self.path), where)
        known = self.device in ("auto", "cpu", "cuda", "mps") or self.device.startswith("cuda:")
        need(self, "model.device", known, "use auto, cpu, cuda, cuda:N or mps")
        spread = self.device_map is not None
        need(self, "model.device", not spread or self.device == "auto", "model.device_map chooses devices; use auto")
        half = self.quantization is None or self.dtype is not Dtype.float32
        need(self, "model.quantization", half, "the rest of the model is then half precision; set model.dtype=bfloat16")


@dataclass
class DataConfig:
    """Group `data`: which text, from where, how it is split."""

    name: str = MISSING
    source: str = MISSING  # pydoc, libdocs, wikitext2, text or hub
    hub_id: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    split: str | None = None  # of source hub: this one cut in three; null takes train, validation and test
    column: str | None = None  # of source hub: which holds the text
    rows: int | None = None  # of source hub: the first so many of each split
    path: str | None = None
    validation: float = 0.1  # share of documents, where the source has no splits of its own
    test: float = 0.1
    documents: int | None = None  # most of each split, drawn and ordered by their hash; null keeps all in their order
    clean: bool = False  # held-out splits without 13-grams of nano's pretraining text and of each other's

    def __post_init__(self) -> None:
        require_name("data.name", self.name)
        at_least(self, 2, "data.documents", null=", or null for all")
        known = self.source in ("pydoc", "libdocs", "wikitext2", "text", "hub")
        need(self, "data.source", known, "use pydoc, libdocs, wikitext2, text or hub")
        at_least(self, 1, "data.rows", null=", or null for all")
        for key in ("split", "column", "rows"):
            need(self, f"data.{key}", self.source == "hub" or getattr(self, key) is None, "only data=hub has it")
        named = self.source != "hub" or bool(self.hub_id or self.path)
        need(self, "data.hub_id", named, "data.source=hub needs data.hub_id=<owner/name> or data.path=<folder>")
        need(self, "data.column", self.source != "hub" or bool(self.column), "name the column that holds the text")
        there = self.source != "text" or bool(self.path)
        need(self, "data.path", there, "data.source=text needs data.path=<file or folder>")
        reads = self.path is None or self.source in ("wikitext2", "text", "hub")
        need(self, "data.path", reads, f"data.source={self.source} reads no file; use data=text, wikitext2 or hub")
        need(self, "data.validation", 0 < self.validation < 1, "give a share between 0 and 1")
        need(self, "data.test", 0 < self.test < 1 - self.validation, "give a share between 0 and 1 - data.validation")


THREADS = 1024  # of torch, at most
COUNT = 1_000_000  # of steps, windows and passes, at most: what is larger is a slip
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
    count: int | None = None  # so many of these sites, spread evenly, the last v_proj first; null: all
    order: int = 0  # of `count`: n begins at the site that 0 adds after n others
    side: Side = Side.input
    sign_constrained: bool = False  # forward pass y = sign(x) * |Qx|
    options: dict[str, Any] = field(default_factory=dict)  # the method's own words

    def __post_init__(self) -> None:
        need(self, "adapter.dim", self.dim >= 2, "a block needs dimension 2 or more (powers of two run as circuits)")
        at_least(self, 1, "adapter.rank", "adapter.factors")
        at_least(self, 1, "adapter.count", null=", or null for all sites")
        at_least(self, 0, "adapter.order")
        need(self, "adapter.order", not self.order or self.count is not None, "it orders the sites of adapter.count")
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
        number = first.isdecimal() and (last.isdecimal() and int(first) <= int(last) if dash else True)
        require(number or word in ("all", "first", "last"), "adapter.layers", given, possible)
    require(bool(words), "adapter.layers", given, "name at least one layer")
    return words


class Sample(Enum):
    """Which text of a split is measured."""

    whole = "whole"  # one running text, as published perplexities; max_tokens keeps its head
    passages = "passages"  # windows that keep to one document, drawn by hash, from every document one before a second


@dataclass
class TrainingConfig:
    """Group `training`: optimiser, schedule, loss, evaluation while training."""

    steps: int = 80  # with patience the most
    patience: int | None = None  # steps without min_gain until the rate falls to its end; null: a cosine of `steps`
    min_gain: float = 0.001  # nats per token of validation that count as a gain
    decay: float = 0.25  # length of that fall, as a share of the steps before it; 0: the end
    average: float = 0.0  # of the parameters' running mean, which is then validated and kept; 0: they themselves
    batch: int = 8  # windows per forward pass
    accumulation: int = 1  # forward passes per optimiser step
    context: int = 512  # tokens per window
    lr: float = 0.006
    warmup: int = 10  # steps of linear warm-up
    final_lr: float = 0.05  # share of lr at the last step
    weight_decay: float = 0.0
    clip: float = 1.0  # norm of the gradient; 0 switches clipping off
    distill_weight: float = 0.0  # share of the distillation loss; 0 is plain cross-entropy
    temperature: float = 2.0
    kept: float = 1.0  # noise-aware: share of counts that gates leave, in the forward pass of training; 1 is without
    eval_every: int = 20
    eval_tokens: int = 16384  # validation tokens per evaluation while training
    sample: Sample = Sample.whole  # which text those are
    checkpoint_every: int = 20
    divergence: float = 3.0  # stop when a step's loss exceeds the first by this many nats
    threads: int = 0  # CPU threads; 0 leaves torch's choice
    gradient_checkpointing: bool = False  # layers keep their input alone and compute twice: less memory, more time

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulation", "eval_every", "eval_tokens", "checkpoint_every")
        at_least(self, 1, *(f"training.{key}" for key in counts))
        for key in sorted({*counts} - {"eval_tokens"}):
            need(self, f"training.{key}", getattr(self, key) <= COUNT, f"give {COUNT:,} or fewer")
        patient = self.patience is None or self.patience >= max(self.eval_every, self.warmup)
        looks = f"give training.eval_every={self.eval_every} and training.warmup={self.warmup} or more, or null"
        need(self, "training.patience", patient, looks)
        need(self, "training.decay", 0 <= self.decay <= 1, "give a share from 0 to 1")
        need(self, "training.average", 0 <= self.average < 1, "give a number from 0 to below 1")
        need(self, "training.context", self.context >= 2, "a window needs 2 tokens or more")
        window = f"give a window of training.context={self.context} tokens or more"
        need(self, "training.eval_tokens", self.eval_tokens >= self.context, window)
        for key in ("lr", "temperature"):
            need(self, f"training.{key}", 0 < getattr(self, key) < math.inf, "give a number above 0")
        need(self, "training.divergence", self.divergence > 0, "give a number above 0, or inf to go on anyhow")
        at_least(self, 0, *(f"training.{key}" for key in ("warmup", "weight_decay", "clip", "threads", "min_gain")))
        need(self, "training.threads", self.threads <= THREADS, f"give {THREADS} or fewer")
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
            need(self, key, stride is not None and stride >= 1, "protocol.kind=hf_strided needs a stride of 1 or more")
            gaps = f"must not exceed protocol.ctx={self.ctx}, or tokens between windows are never scored"
            need(self, key, self.ctx is None or (stride or 0) <= self.ctx, gaps)
        else:
            need(self, key, stride is None, f"protocol.kind={self.kind.value} has no stride; use protocol=hf_strided")


@dataclass
class EvaluationConfig:
    """What is measured with the protocol, and the bootstrap behind its interval."""

    split: Split = Split.test
    sample: Sample = Sample.whole
    batch: int = 8  # windows per forward pass
    max_tokens: int | None = None  # scored at most, about; null is all
    precision: float | None = None  # half of the 95 % interval, as a share of the perplexity; null: max_tokens
    resamples: int = 9999  # of the bootstrap

    def __post_init__(self) -> None:
        at_least(self, 1, "evaluation.batch")
        at_least(self, 2, "evaluation.max_tokens", null=", or null for all")
        if self.precision is not None:
            need(self, "evaluation.precision", 0 < self.precision < 1, "give a share between 0 and 1, 0.01 for 1 %")
            drawn = self.sample is Sample.passages and self.max_tokens is not None
            how = "it draws passages, from max_tokens on: set evaluation.sample=passages and evaluation.max_tokens"
            need(self, "evaluation.precision", drawn, how)
        need(self, "evaluation.resamples", 99 <= self.resamples <= 10**6, "an interval takes 99 to 1,000,000 resamples")


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
    def calibrated(self) -> bool:
        """Whether it looks at text."""
        return self.activation_aware or self.profile is Profile.sensitivity

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

    path: str | None = None  # folder written by `qrun train` or PEFT (OFT, LoRA); null measures the model alone


class LauncherKind(Enum):
    """Where cells run."""

    local = "local"
    ray = "ray"
    submitit = "submitit"


class Cluster(Enum):
    """Who takes the jobs of submitit."""

    slurm = "slurm"
    local = "local"  # processes on this machine, to try a set-up


@dataclass
class LauncherConfig:
    """Group `launcher`: who computes the cells of a study. The results are the same with any."""

    kind: LauncherKind = LauncherKind.local
    workers: int | None = None  # processes, Ray tasks or jobs at once; null: as many as the cores allow, one on a GPU
    threads: int = 1  # of torch in each process; a job asks for as many CPUs
    gpus: float = 0.0  # share of a GPU that a Ray task takes, or GPUs of a job
    address: str | None = None  # of a Ray cluster; null starts Ray on this machine
    cluster: Cluster = Cluster.slurm  # of submitit
    partition: str | None = None  # of SLURM; null is the cluster's default
    timeout_min: int = 240  # a job's longest time; a stopped training goes on at its checkpoint
    mem_gb: float | None = None  # of a job; null is the cluster's default

    def __post_init__(self) -> None:
        at_least(self, 1, "launcher.workers", null=", or null")
        at_least(self, 1, "launcher.threads", "launcher.timeout_min")
        need(self, "launcher.threads", self.threads <= THREADS, f"give {THREADS} or fewer")
        at_least(self, 0, "launcher.gpus")
        whole = self.kind is not LauncherKind.submitit or self.gpus == int(self.gpus)
        need(self, "launcher.gpus", whole, "a SLURM job takes whole GPUs")
        need(self, "launcher.mem_gb", self.mem_gb is None or self.mem_gb > 0, "give gigabytes above 0, or null")


class Chat(Enum):
    """Whether prompts go into the tokenizer's chat template."""

    auto = "auto"  # for models with `instruct`, where the tokenizer has one
    on = "on"
    off = "off"


@dataclass
class PromptConfig:
    """How a prompt is put to the model."""

    chat: Chat = Chat.auto


@dataclass
class TrackingConfig:
    """Key `tracking`: where runs are recorded."""

    uri: str | None = None  # of an MLflow server or database; null: MLFLOW_TRACKING_URI, else SQLite below `results`

    def __post_init__(self) -> None:
        parts = urlsplit(self.uri or "http://host")
        shown = redacted(self.uri or "")
        possible = "give an address such as http://host:5000 or postgresql://host/name, or null"
        require(bool(parts.scheme), "tracking.uri", shown, possible)
        kept = "every run would record the password; set MLFLOW_TRACKING_URI in the environment instead"
        require(shown == (self.uri or ""), "tracking.uri", shown, kept)


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
        read = self.source == "mmlu" or self.path is None
        need(self, "questions.path", read, "questions=continuation reads no files: use mmlu or own")
        at_least(self, 1, "questions.limit", null=", or null for all")
        need(self, "questions.examples", 0 <= self.examples <= 5, "give 0 to 5")
        at_least(self, 20, "questions.characters")
        at_least(self, 40, "questions.context")
        need(
            self, "questions.pick", picked and min(self.pick, default=0) >= 0, "give one index of 0 or more per subject"
        )
        plain = all(re.fullmatch(r"[A-Za-z0-9_-]+", subject) for subject in self.subjects)
        once = plain and len(set(self.subjects)) == len(self.subjects)
        need(self, "questions.subjects", once, "give names of a-z, A-Z, 0-9, '_' and '-', each once")
        known = not self.reported or len(self.reported) == len(self.pick)
        need(self, "questions.reported", known, "give one answer per picked question")
