"""What cells compute: find a learning rate, train an adapter, measure on a device, compress a model, ask questions.

Each task is a small description that travels to another process. Its `identity` is what makes its number; a need called
`model` is a cell that makes the model (a compression), `rate` one that scans learning rates, `adapter` one that trains,
`base` and `exact` measurements that it is compared with.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from qrun.adapters.methods import OF_PEFT, names, spec
from qrun.adapters.sites import adapted, sites
from qrun.cells.cell import Place, Scalar
from qrun.cells.keys import Sources
from qrun.config.devices import DeviceConfig, EstimateConfig, Mode, SignsConfig
from qrun.config.ranges import need
from qrun.config.schema import AdapterConfig, ModelConfig, SavedAdapterConfig
from qrun.config.verbs import CompressConfig, QuestionsRunConfig, RunConfig, TrainConfig
from qrun.files import below
from qrun.foreign import read_json
from qrun.language import questions
from qrun.language.models import model_shape
from qrun.language.prompts import uses_chat
from qrun.quantum.calibration import calibration
from qrun.quantum.noise import Noise
from qrun.recipes.checks import check_lengths, check_unseen
from qrun.tracking.store import Store

if TYPE_CHECKING:
    from qrun.cells.workspace import Workspace

FILES = ("qrun.json", "adapter_config.json", "adapter_model.safetensors")
TYPICAL = 0.45  # of the cap that a training with patience takes: of nano, b = 4, all sites; no other is known yet
CUT = "cut"  # `cut6`: values of a Measure


def model_of(config: ModelConfig, place: Place) -> ModelConfig:
    """The model of a cell: the configured one, or what the needed cell made of it."""
    if "model" not in place.needs:
        return config
    made = Store(place.results, place.uri).recorded(place.needs["model"])
    folder = str(compressed(place.results, made.name))  # of this results folder: the run may be another's
    changes = {"name": made.name, "path": folder, "hub_id": None, "embedded": False, "shape": None}
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def at_rate(config: TrainConfig, place: Place) -> TrainConfig:
    """The training at the rate that the needed scan found, or at its own."""
    if "rate" not in place.needs:
        return config
    found = Store(place.results, place.uri).recorded(place.needs["rate"]).metrics["lr"]
    return dataclasses.replace(config, training=dataclasses.replace(config.training, lr=found))


def saved(adapter: SavedAdapterConfig) -> list[str] | None:
    """Digests of a saved adapter's files."""
    if adapter.path is None:
        return None
    files = [Path(adapter.path) / name for name in FILES]
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else "missing" for file in files]


def method_of(adapter: SavedAdapterConfig) -> tuple[str, ...]:
    """The module of a saved adapter's method; what is no adapter's folder is refused where it is read."""
    if adapter.path is None:
        return ()
    file = next((file for name in FILES[:2] if (file := Path(adapter.path) / name).is_file()), None)
    found = read_json(file) if file else {}
    stated = found.get("adapter")
    name = stated.get("method") if isinstance(stated, dict) else OF_PEFT.get(str(found.get("peft_type")))
    return (f"adapters.methods.{name}",) if name in names() else ()


def circuit_modules(kind: str) -> tuple[str, ...]:
    """What runs blocks as circuits on a device of that kind."""
    return ("recipes.device", f"quantum.devices.{kind}")


def compressed(results: str, name: str) -> Path:
    """Where a Compress cell of that name leaves its model. Raises InputError where a link leads out of the results."""
    return below(Path(results).resolve(), "compressed", name)


def weights(config: ModelConfig, adapter: AdapterConfig | None = None) -> int:
    """Parameters of the model's projections and head that a token meets, about: all, or those from an adapter's first
    layer on, where what is before it is kept; 0 where no shape is stated."""
    shape = model_shape(config)
    if shape is None:
        return 0
    first = adapted(shape, adapter)[0].layer if adapter else 0
    met = sum(site.in_features * site.out_features for site in sites(shape) if site.layer >= first)
    return met + shape.hidden_size * shape.vocab_size


@dataclass(frozen=True)
class Train:
    """`qrun train` without its measurements: an adapter in results/runs/<name>/adapter."""

    config: TrainConfig
    kind: ClassVar[str] = "train"

    @property
    def modules(self) -> tuple[str, ...]:
        """The step that trains, and the method."""
        return ("recipes.fitting", "language.models", f"adapters.methods.{self.config.adapter.method}")

    def identity(self, sources: Sources, needs: Mapping[str, str]) -> Mapping[str, object]:
        """Model, teacher, text, adapter, training, seed."""
        c = self.config
        check_lengths(c)
        window = min(c.training.context, c.protocol.ctx or c.training.context)  # of validation_task
        taught = c.teacher is not None and c.training.distill_weight > 0
        training = dataclasses.replace(c.training, checkpoint_every=1)  # resumed from any, it ends in the same bits
        return {
            **sources.model(c.model, needs.get("model")), "text": sources.digest(c.data, "train", "validation"),
            "teacher": sources.model(c.teacher, None) if taught and c.teacher else None,
            "adapter": c.adapter, "training": training, "seed": c.seed, "batch": c.evaluation.batch,
            "validation": window,
        }  # fmt: skip

    def name(self, axes: Mapping[str, Scalar], key: str) -> str:
        """`nano-b4-s0-1a2b3c4d`."""
        label = spec(self.config.adapter.method).label(self.config.adapter)
        return f"{self.config.model.name}-{label}-s{self.config.seed}-{key[:8]}"

    def leaves(self, name: str) -> None:
        """The adapter is in the store."""

    def work(self) -> float:
        """6 FLOP a weight and token in training, 2 in validations; distillation adds a forward pass."""
        t = self.config.training
        steps = t.steps if t.patience is None else TYPICAL * t.steps
        tokens = steps * t.batch * t.accumulation * t.context
        factor = 8 if t.distill_weight else 6
        met = weights(self.config.model, self.config.adapter)
        return met * (factor * tokens + 2 * t.eval_tokens * (1 + steps // t.eval_every))

    def parameters(self) -> int | None:
        """Trained parameters, where shape and method tell them."""
        shape, adapter = model_shape(self.config.model), self.config.adapter
        if shape is None:
            return None
        return spec(adapter.method).count(adapter, adapted(shape, adapter))

    def run(self, workspace: "Workspace", place: Place) -> str:
        """Train, save; an unfinished checkpoint of the cell is continued."""
        from qrun.recipes.cell_runs import train_cell

        config = at_rate(self.config, place)
        model = model_of(config.model, place)
        return train_cell(dataclasses.replace(config, model=model, name=place.name), workspace, place)


@dataclass(frozen=True)
class Scan:
    """The best of `trials` learning rates around the config's own, by validation; trainings take it as their need."""

    config: TrainConfig
    trials: int
    kind: ClassVar[str] = "scan"

    @property
    def modules(self) -> tuple[str, ...]:
        """The trials, and what trains."""
        return ("recipes.scanning", *Train(self.config).modules)

    def identity(self, sources: Sources, needs: Mapping[str, str]) -> Mapping[str, object]:
        """Those of a training, and the number of rates."""
        return {**Train(self.config).identity(sources, needs), "trials": self.trials}

    def name(self, axes: Mapping[str, Scalar], key: str) -> str:
        """`nano-b4-rates-1a2b3c4d`."""
        label = spec(self.config.adapter.method).label(self.config.adapter)
        return f"{self.config.model.name}-{label}-rates-{key[:8]}"

    def leaves(self, name: str) -> None:
        """The rate is in the store."""

    def work(self) -> float:
        """A training for each rate, at most to its cap; those that are pruned make up for the one more at an edge."""
        fixed = dataclasses.replace(self.config.training, patience=None)
        return self.trials * Train(dataclasses.replace(self.config, training=fixed)).work()

    def parameters(self) -> int | None:
        """Those of each trial."""
        return Train(self.config).parameters()

    def run(self, workspace: "Workspace", place: Place) -> str:
        """Try, choose; finished trials of an interrupted scan are kept."""
        from qrun.recipes.cell_runs import scan_cell

        model = model_of(self.config.model, place)
        config = dataclasses.replace(self.config, model=model, name=place.name)
        return scan_cell(dataclasses.replace(self, config=config), workspace, place)


@dataclass
class MeasureConfig(RunConfig):
    """Model, text and protocol, and the device that computes Q x."""

    adapter: SavedAdapterConfig = field(default_factory=SavedAdapterConfig)  # a saved one, where no cell trains it
    device: DeviceConfig = field(default_factory=DeviceConfig)
    noise: Noise = field(default_factory=Noise)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    signs: SignsConfig = field(default_factory=SignsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one = "the cells of a study are compared on one text; set null, and evaluation.max_tokens"
        need(self.evaluation, "evaluation.precision", self.evaluation.precision is None, one)


def on_circuits(config: MeasureConfig | QuestionsRunConfig) -> Mapping[str, object]:
    """What of a config makes counts and estimates: device, noise, a chip's calibration by its content, readout."""
    noise = config.noise
    chip = calibration(noise.calibration).digest if noise.calibration else None
    device = dataclasses.replace(config.device, budget_s=None, mode=Mode.job)  # neither changes a count
    return {
        "device": device, "noise": noise.digest, "chip": chip, "estimate": config.estimate,
        "signs": config.signs,
    }  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """Perplexity of a model, alone or with the adapter it needs, exact or on circuits. `values` replaces the trained
    parameters by a null, `zero` (K = 0) or `shuffled` (a rotation that knows nothing), or the trained blocks by the
    nearest circuits of k CZ, `cut<k>`."""

    config: MeasureConfig
    values: str = "trained"
    kind: ClassVar[str] = "measure"

    @property
    def czs(self) -> int | None:
        """CZ of the circuits that blocks are cut to; None where they are not."""
        return int(self.values.removeprefix(CUT)) if self.values.startswith(CUT) else None

    @property
    def circuits(self) -> bool:
        """Whether blocks run as circuits."""
        return self.config.device.kind != "exact"

    @property
    def modules(self) -> tuple[str, ...]:
        """The measurement; with circuits the executor and the device; how blocks are cut."""
        device = circuit_modules(self.config.device.kind) if self.circuits else ()
        return ("recipes.measuring", *method_of(self.config.adapter), *device, *(("adapters.cut",) if self.czs else ()))

    def identity(self, sources: Sources, needs: Mapping[str, str]) -> Mapping[str, object]:
        """Model, text, protocol, and what of the device makes counts."""
        c = self.config
        check_lengths(c)
        circuits = {**on_circuits(c), "seed": c.seed} if self.circuits else None
        own = {"adapter": saved(c.adapter)} if c.adapter.path else {}
        return {
            **own, **sources.model(c.model, needs.get("model")),
            "text": sources.digest(c.data, c.evaluation.split.value),
            "protocol": c.protocol, "evaluation": c.evaluation, "values": self.values,
            "circuits": circuits, "shuffle": c.seed if self.values == "shuffled" else None,
        }  # fmt: skip

    def name(self, axes: Mapping[str, Scalar], key: str) -> str:
        """`nano-gates-0.001-b4-s0-1a2b3c4d`."""
        words = {"b": "b", "seed": "s"}
        shown = [f"{words.get(k, '')}{v}" for k, v in axes.items() if v is not None]
        return "-".join(["".join(c if c.isalnum() or c in "._" else "_" for c in word) for word in
                         [self.config.model.name, *shown, key[:8]]])  # fmt: skip

    def leaves(self, name: str) -> None:
        """Measurements are in the store."""

    def work(self) -> float:
        """2 FLOP a weight and token; a noisy circuit of n qubits costs about 200 * 8^n more."""
        c = self.config
        shape, tokens = model_shape(c.model), c.evaluation.max_tokens or 50_000
        return 2.0 * weights(c.model) * tokens + (1e4 * tokens * len(sites(shape)) if self.circuits and shape else 0)

    def parameters(self) -> int | None:
        """Nothing is trained."""
        return None

    def run(self, workspace: "Workspace", place: Place) -> str:
        """Measure and compare with what was needed."""
        from qrun.recipes.cell_runs import measure_cell

        model = model_of(self.config.model, place)
        config = dataclasses.replace(self.config, model=model, name=place.name)
        return measure_cell(dataclasses.replace(self, config=config), workspace, place)


@dataclass(frozen=True)
class Compress:
    """`qrun compress` into results/compressed/<name>."""

    config: CompressConfig
    results: str
    kind: ClassVar[str] = "compress"
    modules: ClassVar[tuple[str, ...]] = ("recipes.compress",)

    def identity(self, sources: Sources, needs: Mapping[str, str]) -> Mapping[str, object]:
        """Model, calibration text, how."""
        c = self.config
        return {**sources.model(c.model, None), "text": sources.digest(c.data, "train"), "compression": c.compression}

    def name(self, axes: Mapping[str, Scalar], key: str) -> str:
        """`nano-asvd-0.65-1a2b3c4d`."""
        return f"{self.config.model.name}-{self.config.compression.label}-{self.config.compression.ratio:g}-{key[:8]}"

    def leaves(self, name: str) -> Path:
        """The model's config.json."""
        return compressed(self.results, name) / "config.json"

    def work(self) -> float:
        """An SVD of every projection, about 30 in^2 out."""
        shape = model_shape(self.config.model)
        return sum(30.0 * s.in_features**2 * s.out_features for s in sites(shape)) if shape else 0.0

    def parameters(self) -> int | None:
        """Nothing is trained."""
        return None

    def run(self, workspace: "Workspace", place: Place) -> str:
        """A private copy of the model is loaded: its weights are replaced."""
        from qrun.recipes.cell_runs import compress_cell

        return compress_cell(self.config, self.leaves(place.name).parent, place)


@dataclass(frozen=True)
class Ask:
    """One arm of `qrun eval questions`: a model, alone or with a saved adapter, exact or on circuits. `values` replaces
    the trained parameters as in Measure."""

    config: QuestionsRunConfig  # `model` is the arm's
    circuits: bool
    values: str = "trained"
    kind: ClassVar[str] = "ask"

    @property
    def modules(self) -> tuple[str, ...]:
        """Answers; with circuits the executor and the device."""
        device = circuit_modules(self.config.device.kind) if self.circuits else ()
        return ("recipes.measuring", "evaluation.questions", *method_of(self.config.adapter), *device)

    def identity(self, sources: Sources, needs: Mapping[str, str]) -> Mapping[str, object]:
        """Model, adapter, questions, sampling, circuits."""
        c = self.config
        check_unseen(c)
        return {
            **sources.model(c.model, None), "questions": questions.load(c.questions, c.seed).digest,
            "adapter": saved(c.adapter), "chat": uses_chat(c.prompt, c.model), "batch": c.batch,
            "temperatures": c.temperatures, "trials": c.trials, "seed": c.seed, "values": self.values,
            "circuits": on_circuits(c) if self.circuits else None,
        }  # fmt: skip

    def name(self, axes: Mapping[str, Scalar], key: str) -> str:
        """`nano-continuation-adapter-1a2b3c4d`."""
        arm = str(axes["arm"]).replace(" ", "_")
        return f"{self.config.model.name}-{self.config.questions.name}-{arm}-{key[:8]}"

    def leaves(self, name: str) -> None:
        """Answers are in the store."""

    def work(self) -> float:
        """Four passes over a few hundred tokens each, at most."""
        return 2.0 * weights(self.config.model) * 4 * 200 * (self.config.questions.limit or 1000)

    def parameters(self) -> int | None:
        """Nothing is trained."""
        return None

    def run(self, workspace: "Workspace", place: Place) -> str:
        """Answer every question."""
        from qrun.recipes.cell_runs import ask_cell

        return ask_cell(self, workspace, place)
