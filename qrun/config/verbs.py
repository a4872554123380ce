"""What every command takes: one dataclass per verb, and the axes of the studies.

The groups they are made of are in schema.py; ranges are checked in `__post_init__`, before anything heavy is imported.
"""

from dataclasses import dataclass, field, fields
from enum import Enum

from omegaconf import MISSING

from qrun.config.schema import (
    AdapterConfig,
    CompressionConfig,
    DataConfig,
    DeviceConfig,
    EvaluationConfig,
    LauncherConfig,
    Method,
    ModelConfig,
    NoiseConfig,
    ProtocolConfig,
    QuestionsConfig,
    ReadoutConfig,
    SavedAdapterConfig,
    Sign,
    TrainingConfig,
    _require,
)


@dataclass
class RunConfig:
    """What every run has. `results` is the folder of the store; it is created on first use."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    protocol: ProtocolConfig = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    results: str = "results"
    name: str | None = None  # run name; null builds it from model, adapter and seed

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", self.seed, "give a number from 0 to 2^63 - 1")


@dataclass
class TrainConfig(RunConfig):
    """`qrun train`."""

    adapter: AdapterConfig = MISSING
    training: TrainingConfig = MISSING
    teacher: ModelConfig | None = None  # of distillation; null is the frozen model itself, without its adapter


@dataclass
class PerplexityConfig(RunConfig):
    """`qrun eval perplexity`."""

    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_noise(self.device, self.noise)


class SiteSet(Enum):
    """Sites of a study's series."""

    all = "all"  # every projection of every layer
    one = "one"  # v_proj of the last layer: the paper's Llama setting
    adapter = "adapter"  # what adapter.projections and adapter.layers say


class Indivisible(Enum):
    """What a study does with a block dimension that does not divide every site."""

    stop = "stop"
    skip = "skip"


class ReadoutError(Enum):
    """How readout error moves along the noise sweep's axis."""

    scaled = "scaled"  # in proportion to the two-qubit rate, as the preset's gates
    fixed = "fixed"  # as the preset has it
    none = "none"


@dataclass
class StudyConfig:
    """What all sweeps over trained adapters have."""

    dims: list[int] = field(default_factory=lambda: [2, 4, 8, 16])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    sites: list[SiteSet] = field(default_factory=lambda: [SiteSet.adapter])
    indivisible: Indivisible = Indivisible.stop
    lr_exponent: float = 1.0  # a cell of block dimension b trains with its learning rate * (4 / b)^lr_exponent
    controls: list[str] = field(default_factory=list)  # methods trained beside the adapter
    # Learning rate of each control, the best of scripts/scan_lr.py on validation text; for b = 4 where the method has
    # blocks, for rank 1 of LoRA (lr / sqrt(rank) for others). OFT has the adapter's own.
    control_lr: dict[str, float] = field(
        default_factory=lambda: {"boft": 0.006, "lora": 0.02, "diagonal": 0.02, "block": 0.01, "dense": 0.001}
    )

    def __post_init__(self) -> None:
        for key in ("dims", "seeds", "sites"):
            values = getattr(self, key)
            _require(
                bool(values) and len(set(values)) == len(values),
                f"study.{key}",
                values,
                "give a list of different values",
            )
        _require(min(self.dims) >= 2, "study.dims", self.dims, "a block needs dimension 2 or more")
        _require(min(self.seeds) >= 0, "study.seeds", self.seeds, "give numbers of 0 or more")
        _require(0 <= self.lr_exponent <= 2, "study.lr_exponent", self.lr_exponent, "give a number from 0 to 2")
        known = [m.value for m in Method if m not in (Method.cayley, Method.healing)]
        for name in self.controls:
            _require(name in known, "study.controls", name, f"use {', '.join(known)}")
            lr = self.control_lr.get(name)
            _require(
                name == "oft" or (lr is not None and lr > 0),
                f"study.control_lr.{name}",
                lr,
                "give a learning rate above 0",
            )


@dataclass
class DimStudyConfig(StudyConfig):
    """Axes of `qrun sweep dim`."""

    control_seeds: list[int] = field(default_factory=lambda: [0])  # of the LoRA curve at equal parameters


@dataclass
class NoiseStudyConfig(StudyConfig):
    """Axes of `qrun sweep noise`."""

    rates: list[float] = field(
        default_factory=lambda: [1e-3, 1e-2]
    )  # two-qubit error rates; the preset's other rates keep their proportion to it
    shots: list[int | None] = field(default_factory=lambda: [8192])
    signs: list[Sign] = field(default_factory=lambda: [Sign.input])
    readout: list[ReadoutError] = field(default_factory=lambda: [ReadoutError.scaled])

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            bool(self.rates) and self.rates == sorted(set(self.rates)),
            "study.rates",
            self.rates,
            "give different rates in rising order",
        )
        _require(all(0 < r <= 0.75 for r in self.rates), "study.rates", self.rates, "give rates above 0, at most 0.75")
        for key in ("shots", "signs", "readout"):
            values = getattr(self, key)
            _require(
                bool(values) and len(set(values)) == len(values),
                f"study.{key}",
                values,
                "give a list of different values",
            )
        _require(
            all(s is None or s >= 1 for s in self.shots),
            "study.shots",
            self.shots,
            "give 1 or more, or null for exact probabilities",
        )
        _require(all(b & (b - 1) == 0 for b in self.dims), "study.dims", self.dims, "circuits need powers of two")


@dataclass
class RecoverStudyConfig(StudyConfig):
    """Axes of `qrun recover`."""

    ratios: list[float] = field(default_factory=lambda: [0.5])  # of parameters kept
    healing_lr: float = 0.0005

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            bool(self.ratios) and len(set(self.ratios)) == len(self.ratios),
            "study.ratios",
            self.ratios,
            "give a list of different values",
        )
        _require(
            all(0 < r < 1 for r in self.ratios),
            "study.ratios",
            self.ratios,
            "give shares of the parameters between 0 and 1",
        )
        _require(
            len(self.sites) == 1,
            "study.sites",
            [s.value for s in self.sites],
            "recovery is studied at one set of sites; run it once for each",
        )
        _require(self.healing_lr > 0, "study.healing_lr", self.healing_lr, "give a learning rate above 0")


@dataclass
class DimSweepConfig(TrainConfig):
    """`qrun sweep dim`."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    study: DimStudyConfig = field(default_factory=DimStudyConfig)


@dataclass
class NoiseSweepConfig(TrainConfig):
    """`qrun sweep noise`."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    study: NoiseStudyConfig = field(default_factory=NoiseStudyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.device.kind == "noisy", "device", self.device.kind, "the noise sweep runs on device=noisy")
        _require(
            self.noise.cz > 0,
            "noise",
            self.noise.name,
            "rates are scaled in a preset's proportions; its cz must be above 0",
        )


@dataclass
class ControlsConfig(TrainConfig):
    """`qrun sweep controls`."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)  # of the null adapter K = 0
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


@dataclass
class RecoverConfig(TrainConfig):
    """`qrun recover`: `data` is the shifted text, `home` text from the model's own pretraining distribution."""

    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    home: DataConfig | None = None
    study: RecoverStudyConfig = field(default_factory=RecoverStudyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.compression.bond is None,
            "compression.bond",
            self.compression.bond,
            "the study's axis is study.ratios; set null",
        )


@dataclass
class CompressConfig:
    """`qrun compress`."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING  # calibration text
    compression: CompressionConfig = field(default_factory=CompressionConfig)


@dataclass
class QuestionsRunConfig:
    """`qrun eval questions`: original (optional), model, and model with adapter."""

    model: ModelConfig = MISSING
    original: ModelConfig | None = None  # what `model` was compressed from
    questions: QuestionsConfig = MISSING
    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    temperatures: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.0])
    trials: int = 20  # sampled answers per question and temperature
    batch: int = 16
    seed: int = 0
    results: str = "results"
    name: str | None = None

    def __post_init__(self) -> None:
        _require(
            bool(self.temperatures) and min(self.temperatures) > 0,
            "temperatures",
            self.temperatures,
            "give numbers above 0",
        )
        _require(self.trials >= 1, "trials", self.trials, "give 1 or more")
        _require(self.batch >= 1, "batch", self.batch, "give 1 or more")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "give a number from 0 to 2^63 - 1")
        _check_noise(self.device, self.noise)


@dataclass
class PlanConfig:
    """`qrun plan`."""

    model: ModelConfig = MISSING
    adapter: AdapterConfig = MISSING
    device: DeviceConfig = field(default_factory=DeviceConfig)
    tokens: int = 83  # the paper's one sequence, by inference from its 1,328 circuits

    def __post_init__(self) -> None:
        _require(self.tokens >= 1, "tokens", self.tokens, "give 1 or more")
        _require(
            self.device.kind in ("fake", "ibm"), "device", self.device.kind, "a plan is for device=ibm or device=fake"
        )


@dataclass
class GenerateConfig:
    """`qrun generate`."""

    model: ModelConfig = MISSING
    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    tokens: int = 40  # most tokens to generate
    temperature: float = 0.8  # 0 takes the likeliest token
    seed: int = 0
    results: str = "results"

    def __post_init__(self) -> None:
        _require(self.tokens >= 1, "tokens", self.tokens, "give 1 or more")
        _require(self.temperature >= 0, "temperature", self.temperature, "give 0 or more")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "give a number from 0 to 2^63 - 1")
        _check_noise(self.device, self.noise)


@dataclass
class CircuitConfig:
    """`qrun circuit`."""

    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    dim: int = 4  # of a random block, where no adapter is given
    site: str | None = None  # of the adapter; null takes its first
    block: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.dim in (2, 4, 8, 16, 32, 64), "dim", self.dim, "circuits have 2, 4, 8, 16, 32 or 64 amplitudes")
        _require(self.block >= 0, "block", self.block, "give 0 or more")


def _check_noise(device: DeviceConfig, noise: NoiseConfig) -> None:
    takes_noise = device.kind in ("noisy", "pennylane", "aer")
    _require(
        takes_noise or noise.name == "none",
        "noise",
        noise.name,
        f"device={device.kind} has no noise model; use device=noisy, aer or pennylane",
    )


VERBS: dict[str, type] = {
    "train": TrainConfig,
    "perplexity": PerplexityConfig,
    "questions": QuestionsRunConfig,
    "sweep_dim": DimSweepConfig,
    "sweep_controls": ControlsConfig,
    "sweep_noise": NoiseSweepConfig,
    "recover": RecoverConfig,
    "compress": CompressConfig,
    "plan": PlanConfig,
    "generate": GenerateConfig,
    "circuit": CircuitConfig,
}


def leaf_keys(schema: type = TrainConfig, prefix: str = "") -> list[str]:
    """Dotted names of all settable keys of a schema, for completion."""
    keys: list[str] = []
    for f in fields(schema):
        nested = f.type if isinstance(f.type, type) and hasattr(f.type, "__dataclass_fields__") else None
        keys += leaf_keys(nested, f"{prefix}{f.name}.") if nested else [prefix + f.name]
    return keys
