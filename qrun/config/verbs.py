"""What every command takes: one dataclass per verb, and the axes of the studies.

The groups they are made of are in schema.py; ranges are checked in `__post_init__`, before anything heavy is imported.
"""

from dataclasses import dataclass, field, fields

from omegaconf import MISSING

from qrun.adapters.methods import spec
from qrun.config.devices import Allocation, DeviceConfig, EstimateConfig, Sign, SignsConfig
from qrun.config.ranges import at_least, check_seeds, need, require, require_name, require_place
from qrun.config.schema import (
    AdapterConfig,
    CacheConfig,
    CompressionConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PromptConfig,
    ProtocolConfig,
    QuestionsConfig,
    SavedAdapterConfig,
    TrackingConfig,
    TrainingConfig,
)
from qrun.quantum.noise import Noise

LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3  # of sampling: exp(logit / T) stays a number


@dataclass
class RunConfig:
    """What every run has. `results` is the folder of adapters, the lock and, by default, the store; it is created on
    first use."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    protocol: ProtocolConfig = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    results: str = "results"
    name: str | None = None  # run name; null builds it from model, adapter and seed
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        require_name("name", self.name)
        require_place(self.results)
        check_seeds("seed", self.seed)


@dataclass
class TrainConfig(RunConfig):
    """`qrun train`."""

    adapter: AdapterConfig = MISSING
    training: TrainingConfig = MISSING
    teacher: ModelConfig | None = None  # of distillation; null is the frozen model itself, without its adapter

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter != MISSING and self.training != MISSING:
            circuits = spec(self.adapter.method).circuits or self.training.kept == 1
            require(circuits, "training.kept", self.training.kept, f"method {self.adapter.method} runs on no device")


@dataclass
class PerplexityConfig(RunConfig):
    """`qrun eval perplexity`."""

    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_noise(self.device, self.noise)
        check_readout(self.device, self.estimate, self.signs)


@dataclass
class CompressConfig:
    """`qrun compress`."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING  # calibration text
    compression: CompressionConfig = field(default_factory=CompressionConfig)

    def __post_init__(self) -> None:
        if self.model != MISSING:
            what = self.model.quantization and self.model.quantization.value
            require(what is None, "model.quantization", what, "factors are made of whole weights; set null")


@dataclass
class QuestionsRunConfig:
    """`qrun eval questions`: original (optional), model, and model with adapter."""

    model: ModelConfig = MISSING
    original: ModelConfig | None = None  # what `model` was compressed from
    questions: QuestionsConfig = MISSING
    prompt: PromptConfig = field(default_factory=PromptConfig)
    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)
    temperatures: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.0])
    trials: int = 20  # sampled answers per question and temperature
    batch: int = 16
    seed: int = 0
    results: str = "results"
    name: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        once = len(set(self.temperatures)) == len(self.temperatures) > 0
        ok = once and all(LEAST_TEMPERATURE <= t <= MOST_TEMPERATURE for t in self.temperatures)
        need(self, "temperatures", ok, f"give numbers from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}, each once")
        require_name("name", self.name)
        require_place(self.results)
        at_least(self, 1, "trials", "batch")
        check_seeds("seed", self.seed)
        _check_noise(self.device, self.noise)
        check_readout(self.device, self.estimate, self.signs)


@dataclass
class TasksConfig:
    """`qrun eval tasks`."""

    model: ModelConfig = MISSING
    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    tasks: list[str] = field(default_factory=list)  # of lm-evaluation-harness
    include_path: str | None = None  # folder with task YAMLs of one's own
    fewshot: int | None = None  # examples; null is each task's own number
    limit: int | None = None  # first so many documents of each task
    batch: int = 8
    seed: int = 0
    results: str = "results"
    name: str | None = None
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        need(self, "tasks", bool(self.tasks), "name one or more, for example tasks=[arc_easy,hellaswag]")
        require_name("name", self.name)
        require_place(self.results)
        at_least(self, 1, "batch")
        at_least(self, 1, "limit", null=", or null for all")
        at_least(self, 0, "fewshot", null=", or null for the task's own")
        check_seeds("seed", self.seed)
        _check_noise(self.device, self.noise)
        check_readout(self.device, self.estimate, self.signs)


@dataclass
class PlanConfig:
    """`qrun plan`."""

    model: ModelConfig = MISSING
    adapter: AdapterConfig = MISSING
    device: DeviceConfig = field(default_factory=DeviceConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)
    tokens: int = 83  # the paper's one sequence, by inference from its 1,328 circuits

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens")
        kind = self.device.kind
        require(kind in ("fake", "ibm"), "device.kind", kind, "a plan is for device=ibm or device=fake")
        check_readout(self.device, self.estimate, self.signs)


@dataclass
class GenerateConfig:
    """`qrun generate`."""

    model: ModelConfig = MISSING
    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    tokens: int = 40  # most tokens to generate
    temperature: float = 0.8  # 0 takes the likeliest token
    seed: int = 0
    results: str = "results"

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens")
        ok = self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE
        need(self, "temperature", ok, f"give 0, or a number from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}")
        check_seeds("seed", self.seed)
        _check_noise(self.device, self.noise)
        check_readout(self.device, self.estimate, self.signs)


@dataclass
class CircuitConfig:
    """`qrun circuit`."""

    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)
    dim: int = 4  # of a random block, where no adapter is given
    site: str | None = None  # of the adapter; null takes its first
    block: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        need(self, "dim", self.dim in (2, 4, 8, 16, 32, 64), "circuits have 2, 4, 8, 16, 32 or 64 amplitudes")
        at_least(self, 0, "block")
        check_seeds("seed", self.seed)


def _check_noise(device: DeviceConfig, noise: Noise) -> None:
    given = ", ".join(f"noise.{field.name}" for field in fields(Noise) if getattr(noise, field.name) != field.default)
    possible = f"device.kind={device.kind} has no noise model; use device=noisy, aer or pennylane, or noise=none"
    require(device.takes_noise or noise.ideal, "noise", noise.name, f"{possible} (here {given})"[:250])


def check_readout(device: DeviceConfig, estimate: EstimateConfig, signs: SignsConfig) -> None:
    """What estimates and signs need of each other and of the device."""
    two = signs.kind is Sign.two_settings
    leaning = f"estimate.kind={estimate.kind.value} takes signs from x; use signs=input"
    counted = two or signs.kind is Sign.reference
    require(not (counted and estimate.leans), "signs.kind", signs.kind.value, leaning)
    shared = device.allocation is Allocation.effect and estimate.leans
    alike = f"estimate.kind={estimate.kind.value} counts all alike; use equal"
    require(not shared, "device.allocation", "effect", alike)
    merged = device.circuit == "merged" and signs.kind is Sign.reference
    require(not merged, "signs.kind", "reference", "has no device.circuit=merged; use line")
    few = "two settings share the shots; give 2 or more"
    require(not two or device.shots is None or device.shots >= 2, "device.shots", device.shots, few)


VERBS: dict[str, type] = {
    "train": TrainConfig, "perplexity": PerplexityConfig, "compress": CompressConfig, "plan": PlanConfig,
    "generate": GenerateConfig, "circuit": CircuitConfig, "tasks": TasksConfig,
}  # fmt: skip


def leaf_keys(schema: type = TrainConfig, prefix: str = "") -> list[str]:
    """Dotted names of all settable keys of a schema, for completion."""
    keys: list[str] = []
    for f in fields(schema):
        nested = f.type if isinstance(f.type, type) and hasattr(f.type, "__dataclass_fields__") else None
        keys += leaf_keys(nested, f"{prefix}{f.name}.") if nested else [prefix + f.name]
    return keys
