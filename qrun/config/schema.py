"""Every key a user can set, with its type and range. Checked here, before anything heavy is imported.

A dataclass per config group; verbs.py puts them together. `__post_init__` raises InputError with the key, what was
given and what is possible. The YAML files in configs/ hold the defaults of each option and explain the trade-offs.
"""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

from qrun.config.noise import Noise
from qrun.errors import InputError


class Dtype(Enum):
    """Type the frozen weights are loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Side(Enum):
    """Where Q stands beside the frozen weight W."""

    input = "input"  # y = W Q x, the paper's position
    output = "output"  # y = Q W x


class Method(Enum):
    """What is trained at the sites: the paper's adapter, or a control (adapters/controls.py)."""

    cayley = "cayley"
    oft = "oft"  # PEFT's orthogonal fine-tuning with the exact Cayley map: the same adapter by other hands
    boft = "boft"  # butterfly factors of orthogonal blocks
    lora = "lora"
    diagonal = "diagonal"  # one factor per input channel, PEFT's (IA)^3
    block = "block"  # unconstrained b x b blocks, I + M
    dense = "dense"  # one unconstrained matrix per site, the upper bound
    healing = "healing"  # the factors of a compressed model themselves


BLOCKED = (Method.cayley, Method.oft, Method.boft, Method.block)  # methods whose b must divide the width


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


def _require(condition: bool, key: str, given: object, possible: str) -> None:
    if not condition:
        raise InputError(f"{key}={given}: {possible}")


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
        _require(
            bool(self.embedded or self.hub_id or self.path), "model.path", self.path, "give the folder of a local model"
        )
        _require(
            self.device in ("auto", "cpu", "cuda", "mps") or self.device.startswith("cuda:"),
            "model.device",
            self.device,
            "use auto, cpu, cuda, cuda:N or mps",
        )


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
    documents: int | None = (
        None  # most documents of each split, drawn and ordered by the hash of their text; null keeps all in their order
    )

    def __post_init__(self) -> None:
        _require(
            self.documents is None or self.documents >= 2,
            "data.documents",
            self.documents,
            "give 2 or more, or null for all",
        )
        _require(
            self.source in ("pydoc", "libdocs", "wikitext2", "text"),
            "data.source",
            self.source,
            "use pydoc, libdocs, wikitext2 or text",
        )
        _require(
            self.source != "text" or bool(self.path),
            "data.path",
            self.path,
            "data=text needs data.path=<file or folder>",
        )
        _require(0 < self.validation < 1, "data.validation", self.validation, "give a share between 0 and 1")
        _require(
            0 < self.test < 1 - self.validation,
            "data.test",
            self.test,
            "give a share between 0 and 1 - data.validation",
        )


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class AdapterConfig:
    """Group `adapter`: method, block dimension, sites, side."""

    method: Method = Method.cayley
    dim: int = 4  # block dimension b
    rank: int = 1  # of LoRA
    factors: int = 2  # butterfly factors of BOFT
    projections: Any = "all"  # all, attention, mlp, or a list of projection names
    layers: Any = "all"  # all, first, last, a range "2-5", a number, or a list of those
    side: Side = Side.input
    sign_constrained: bool = False  # forward pass y = sign(x) * |Qx|

    def __post_init__(self) -> None:
        _require(
            self.dim >= 2, "adapter.dim", self.dim, "a block needs dimension 2 or more (powers of two run as circuits)"
        )
        _require(self.rank >= 1, "adapter.rank", self.rank, "give 1 or more")
        _require(self.factors >= 1, "adapter.factors", self.factors, "give 1 or more")
        ours = self.method is Method.cayley
        _require(
            ours or self.side is Side.input,
            "adapter.side",
            self.side.value,
            f"method {self.method.value} acts on the input",
        )
        _require(
            ours or not self.sign_constrained,
            "adapter.sign_constrained",
            "true",
            f"only method cayley has a sign rule, not {self.method.value}",
        )
        groups = {"all": PROJECTIONS, "attention": PROJECTIONS[:4], "mlp": PROJECTIONS[4:]}
        given = self.projections
        names = groups.get(given, (given,)) if isinstance(given, str) else tuple(given or ())
        for name in names:
            _require(
                name in PROJECTIONS,
                "adapter.projections",
                given,
                f"use all, attention, mlp or a list of {', '.join(PROJECTIONS)}",
            )
        _require(bool(names), "adapter.projections", given, "name at least one projection")
        self.projections = [p for p in PROJECTIONS if p in names]
        self.layers = _layers(self.layers)


def _layers(given: Any) -> list[str]:
    """Normalise to a list of words.

    'all', 'first', 'last', 'N' or 'A-B'. Ranges are checked against the model later.
    """
    words = [str(w).strip() for w in (given if isinstance(given, list | tuple) else [given])]
    for word in words:
        first, dash, last = word.partition("-")
        number = first.isdigit() and (last.isdigit() and int(first) <= int(last) if dash else True)
        _require(
            number or word in ("all", "first", "last"),
            "adapter.layers",
            given,
            "use all, first, last, a layer number, a range such as 2-5, or a list of those",
        )
    _require(bool(words), "adapter.layers", given, "name at least one layer")
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
    eval_every: int = 20
    eval_tokens: int = 16384  # validation tokens per evaluation while training
    checkpoint_every: int = 20
    divergence: float = 3.0  # stop when a step's loss exceeds the first by this many nats
    threads: int = 0  # CPU threads; 0 leaves torch's choice

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "accumulation", "eval_every", "eval_tokens", "checkpoint_every"):
            _require(getattr(self, key) >= 1, f"training.{key}", getattr(self, key), "give 1 or more")
        _require(self.context >= 2, "training.context", self.context, "a window needs 2 tokens or more")
        for key in ("lr", "temperature", "divergence"):
            _require(getattr(self, key) > 0, f"training.{key}", getattr(self, key), "give a number above 0")
        for key in ("warmup", "weight_decay", "clip", "threads"):
            _require(getattr(self, key) >= 0, f"training.{key}", getattr(self, key), "give 0 or more")
        for key in ("distill_weight", "final_lr"):
            _require(0 <= getattr(self, key) <= 1, f"training.{key}", getattr(self, key), "give a number from 0 to 1")


@dataclass
class ProtocolConfig:
    """Group `protocol`: how the reported perplexity is computed."""

    kind: ProtocolKind = ProtocolKind.fixed_window
    ctx: int | None = None  # tokens per window; null is the model's number of positions
    stride: int | None = None  # hf_strided only

    def __post_init__(self) -> None:
        _require(self.ctx is None or self.ctx >= 2, "protocol.ctx", self.ctx, "a window needs 2 tokens or more")
        if self.kind is ProtocolKind.hf_strided:
            _require(
                self.stride is not None and self.stride >= 1,
                "protocol.stride",
                self.stride,
                "hf_strided needs a stride of 1 or more",
            )
            ok = self.ctx is None or (self.stride or 0) <= self.ctx
            _require(
                ok,
                "protocol.stride",
                self.stride,
                f"must not exceed protocol.ctx={self.ctx}, or tokens between windows are never scored",
            )
        else:
            _require(
                self.stride is None,
                "protocol.stride",
                self.stride,
                f"{self.kind.value} has no stride; use protocol=hf_strided",
            )


@dataclass
class EvaluationConfig:
    """What is measured with the protocol, and the bootstrap behind its interval."""

    split: Split = Split.test
    batch: int = 8  # windows per forward pass
    max_tokens: int | None = None  # first so many tokens of the split; null is all
    resamples: int = 9999  # of the bootstrap

    def __post_init__(self) -> None:
        _require(self.batch >= 1, "evaluation.batch", self.batch, "give 1 or more")
        _require(
            self.max_tokens is None or self.max_tokens >= 2,
            "evaluation.max_tokens",
            self.max_tokens,
            "give 2 or more, or null for all",
        )
        _require(self.resamples >= 99, "evaluation.resamples", self.resamples, "an interval needs 99 resamples or more")


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

    def __post_init__(self) -> None:
        _require(0 < self.ratio < 1, "compression.ratio", self.ratio, "give a share of the parameters between 0 and 1")
        _require(
            self.bond is None or self.bond >= 1,
            "compression.bond",
            self.bond,
            "give 1 or more, or null to use the ratio",
        )
        _require(2 <= self.cores <= 8, "compression.cores", self.cores, "give 2 to 8")
        svd = self.kind is CompressionKind.svd
        _require(
            not (svd and self.cores != 2), "compression.cores", self.cores, "svd has two factors; use compression=mpo"
        )
        _require(
            svd or not self.activation_aware,
            "compression.activation_aware",
            "true",
            "only svd has an activation-aware form here",
        )
        ok = self.profile is Profile.uniform or self.bond is None
        _require(
            ok, "compression.profile", self.profile.value, "a profile shares out a ratio; set compression.bond=null"
        )
        _require(self.calibration >= 64, "compression.calibration", self.calibration, "give 64 tokens or more")


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


@dataclass
class ReadoutConfig:
    """Group `readout`: how counts become an estimate."""

    sign: Sign = Sign.input


DEVICES = ("exact", "shots", "noisy", "pennylane", "aer", "fake", "ibm")


@dataclass
class DeviceConfig:
    """Group `device`: who computes Q x."""

    kind: str = "exact"
    shots: int | None = 8192  # per circuit; null gives exact probabilities where the device can
    backend: str | None = None  # which simulator or processor of that kind
    precision: Precision = Precision.float32
    optimization_level: int = 3  # of the transpiler, on fake and ibm
    budget_s: float | None = None  # most QPU seconds a run may take, on fake and ibm; nothing is sent beyond

    def __post_init__(self) -> None:
        _require(self.kind in DEVICES, "device.kind", self.kind, f"use {', '.join(DEVICES)}")
        _require(
            self.shots is None or self.shots >= 1,
            "device.shots",
            self.shots,
            "give 1 or more, or null for exact probabilities",
        )
        _require(
            self.shots is not None or self.kind not in ("fake", "ibm"),
            "device.shots",
            self.shots,
            f"{self.kind} only counts; give a number of shots",
        )
        _require(
            0 <= self.optimization_level <= 3, "device.optimization_level", self.optimization_level, "use 0, 1, 2 or 3"
        )
        _require(
            self.budget_s is None or self.budget_s > 0,
            "device.budget_s",
            self.budget_s,
            "give seconds above 0, or null for no limit",
        )


@dataclass
class NoiseConfig:
    """Group `noise`.

    Rates of gates and readout, relaxation times. quantum/noise.py has the conventions and checks the ranges.
    """

    name: str = "none"
    date: str | None = None
    source: str | None = None
    sx: float = 0.0
    cz: float = 0.0
    t1_us: float | None = None
    t2_us: float | None = None
    sx_ns: float = 0.0
    cz_ns: float = 0.0
    read_1_given_0: float = 0.0
    read_0_given_1: float = 0.0
    block: float = 0.0
    factor: float = 1.0  # multiplies every rate, divides every time

    def build(self) -> Noise:
        """The checked noise, scaled."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "factor"}
        return Noise(**values).scaled(self.factor)

    def __post_init__(self) -> None:
        self.build()


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
        _require(self.workers is None or self.workers >= 1, "launcher.workers", self.workers, "give 1 or more, or null")
        _require(self.threads >= 1, "launcher.threads", self.threads, "give 1 or more")
        _require(self.gpus >= 0, "launcher.gpus", self.gpus, "give 0 or more")


@dataclass
class QuestionsConfig:
    """Group `questions`: which questions, and how their prompts look."""

    name: str = MISSING
    source: str = MISSING  # continuation or mmlu
    hub_id: str | None = None
    revision: str | None = None
    path: str | None = (
        None  # local folder with <subject>_test.csv (and <subject>_dev.csv), or parquet files; or one such file
    )
    subjects: list[str] = field(default_factory=list)  # of mmlu; empty takes all
    pick: list[int] = field(default_factory=list)  # one index per subject, instead of all its questions
    reported: list[str] = field(
        default_factory=list
    )  # answers that the paper reports for the picked questions, for the table
    limit: int | None = None  # first so many questions
    examples: int = 0  # of the dev split, before each question of mmlu
    characters: int = 160  # of each passage of continuation
    context: int = 400  # characters before it

    def __post_init__(self) -> None:
        _require(self.source in ("continuation", "mmlu"), "questions.source", self.source, "use continuation or mmlu")
        _require(
            self.limit is None or self.limit >= 1, "questions.limit", self.limit, "give 1 or more, or null for all"
        )
        _require(0 <= self.examples <= 5, "questions.examples", self.examples, "give 0 to 5")
        _require(self.characters >= 20, "questions.characters", self.characters, "give 20 or more")
        _require(self.context >= 40, "questions.context", self.context, "give 40 or more")
        _require(
            not self.pick or len(self.pick) == len(self.subjects),
            "questions.pick",
            self.pick,
            "give one index per subject",
        )
