"""The record that every run leaves: tags that identify its number, config, environment, measurements, a small table."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import psutil

from qrun.adapters.methods import spec
from qrun.cells.workspace import Opened
from qrun.config.compose import PLACES, config_hash, plain, to_yaml
from qrun.config.devices import DeviceConfig
from qrun.config.schema import AdapterConfig
from qrun.config.tree import flatten
from qrun.config.verbs import RunConfig
from qrun.evaluation.measurement import Difference, Measurement
from qrun.quantum.noise import Noise
from qrun.report.screen import table
from qrun.tracking.provenance import environment, git_state
from qrun.tracking.runs import Run, model_of
from qrun.tracking.views import View

if TYPE_CHECKING:
    from qrun.quantum.devices.base import Device  # numba

TRAININGS = View(
    "trainings",
    ("metrics.gain", "metrics.perplexity", "params.adapter.dim", "params.adapter.method", "params.parameters",
     "params.seed"),
    lines=("validation/nats", "train/loss"), scatters=(("params.adapter.dim", "metrics.gain"),), order="metrics.gain",
)  # fmt: skip
EVALUATIONS = View(
    "perplexities",
    ("metrics.gain", "metrics.perplexity", "metrics.relative_perplexity", "params.adapter.dim", "tags.device",
     "tags.noise", "metrics.cz_error_rate", "tags.shots", "tags.protocol"),
    scatters=(("metrics.cz_error_rate", "metrics.relative_perplexity"),),
)  # fmt: skip
Words = dict[str, str | int | float | None]


class OnDevice(Protocol):
    """A config that says where circuits run."""

    device: DeviceConfig
    noise: Noise


def tags(config: RunConfig, opened: Opened) -> Words:
    """What identifies a number beside its parameters."""
    language, task, code = opened.language, opened.task, git_state()
    return {
        **code, "mlflow.source.name": " ".join(["qrun", *sys.argv[1:]]), "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": code["git_sha"], "config_hash": config_hash(config),
        "protocol": task.statement["protocol"], "protocol_fingerprint": task.fingerprint,
        "model_name": language.identity["name"], "model_revision": language.identity["revision"],
        "model_weights": language.identity["weights"], "model_config": language.identity["config"],
        "tokenizer": language.identity["tokenizer"], "data_source": opened.corpus.source,
        "data_digest": task.statement["data_digest"], "compute": str(language.device), "seed": config.seed,
    }  # fmt: skip


def device_tags(config: OnDevice) -> Words:
    """Device, shots and dated noise of a run that has a device."""
    device, noise = config.device, config.noise
    if device.kind == "exact":
        return {"device": "exact"}
    return {"device": device.kind, "shots": device.shots, "noise": noise.name, "noise_date": noise.date}


def record_device(run: Run, device: "Device") -> None:
    """What the device tells of itself as device.json, its numbers and words as tags."""
    facts = device.record()
    if facts:
        run.json(facts, "device.json")
        run.tags({word: value for word, value in facts.items() if isinstance(value, str | int | float)})


def open_record(run: Run, config: RunConfig, opened: Opened) -> None:
    """Config, environment, protocol and dataset inputs: written when a run starts."""
    run.texts({"config.yaml": to_yaml(config)})
    run.json(environment(), "env.json")
    run.json(opened.task.statement, "protocol.json")
    data = config.data
    keys = {"path": data.hub_id, "config_name": data.hub_config, "revision": data.revision}
    hub = keys if data.hub_id and not data.path else {}
    for split, digest in opened.corpus.digests.items():
        run.dataset(f"{opened.corpus.name}-{split}", digest, opened.corpus.source, split, hub)


def record_text(run: Run, opened: Opened) -> None:
    """What was measured in the end, where evaluation.precision decided it."""
    if opened.task.first:
        run.json(opened.task.statement, "protocol.json")
        run.tags({"protocol_fingerprint": opened.task.fingerprint})


def flat_params(config: RunConfig) -> dict[str, object]:
    """The config as MLflow's flat parameters, without what is null."""
    said = {key: value for key, value in plain(config).items() if key not in PLACES}
    return {key: value for key, value in flatten(said).items() if value is not None}


def interval_metrics(name: str, gap: Difference) -> dict[str, float]:
    """A difference as metrics `name`, `name_low`, `name_high`; without limits where there is no interval."""
    limits = {} if gap.interval is None else {f"{name}_low": gap.interval.low, f"{name}_high": gap.interval.high}
    return {name: gap.value, **limits}


def headline(result: Measurement, gain: Difference | None) -> dict[str, float]:
    """The final numbers under plain names, which MLflow's search takes without backticks; with a gain also perplexity
    over the frozen model's."""
    found = {"perplexity": result.perplexity}
    return found if gain is None else {**found, "relative_perplexity": relative(result, gain), "gain": gain.value}


def relative(result: Measurement, gain: Difference) -> float:
    """Perplexity over that of the frozen model, which the gain was measured against."""
    return result.perplexity / (result.perplexity + gain.value)


def cz_error(config: OnDevice) -> dict[str, float]:
    """The two-qubit error rate of a device with noise as metric `cz_error_rate`; of a chip the median. None where every
    circuit answers uniformly, whatever its gates do."""
    return {"cz_error_rate": config.noise.cz} if config.device.takes_noise and config.noise.block < 1 else {}


def adapter_params(config: AdapterConfig, sites: int, parameters: int) -> dict[str, object]:
    """What tells adapters apart in the table of models; b of those that have blocks."""
    own = {"b": config.dim} if spec(config.method).circuits else {}
    return {**own, "method": config.method, "sites": sites, "parameters": parameters}


def on_text(model: str, opened: Opened, config: RunConfig) -> dict[str, str]:
    """A logged model as the metrics of a measurement name it."""
    return model_of(model, f"{opened.corpus.name}-{config.evaluation.split.value}", opened.task.fingerprint)


def record_measurements(
    run: Run, results: Mapping[str, Measurement], gain: Difference | None, model: Mapping[str, str] | None = None
) -> None:
    """Perplexities per document as artifacts, their totals as metrics; of the last also as the headline, which a logged
    model shares."""
    run.texts({f"perplexity_{name}.json": result.to_json() for name, result in results.items()})
    found: dict[str, float] = {"peak_memory_mb": peak_memory_mb()}
    for name, result in results.items():
        values = {"perplexity": result.perplexity, "bits_per_byte": result.bits_per_byte, "seconds": result.seconds}
        found |= {f"{name}/{key}": value for key, value in values.items()}
    run.metrics(headline(list(results.values())[-1], gain), model)
    if gain is not None:
        found |= {name: value for name, value in interval_metrics("gain", gain).items() if name != "gain"}
        base, adapted = next(iter(results.values())), list(results.values())[-1]
        change = f"{base.statement['unit']} perplexity {base.perplexity:.3f} to **{adapted.perplexity:.3f}**"
        run.note(f"{change}: gain {gain.value:+.3f}, {gain.words()} over {gain.documents} documents")
    run.metrics(found)


def peak_memory_mb() -> float:
    """Peak resident memory of this process."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset / 2**20)
    import resource  # kilobytes on Linux, bytes on macOS

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def result_table(title: str, results: Mapping[str, Measurement], gaps: Mapping[str, Difference], caption: str) -> None:
    """The small table at the end of a run: perplexities, then differences with their intervals."""
    unit = next(iter(results.values())).statement["unit"]
    rows = [[name, f"{r.perplexity:.3f}", f"{r.bits_per_byte:.4f}"] for name, r in results.items()]
    rows += [[name, f"{gap.value:+.3f}", gap.words()] for name, gap in gaps.items()]
    table(title, ["", f"{unit} perplexity", "bits per byte"], rows, caption)


def measured_words(result: Measurement) -> str:
    """`41 documents (20.5 effective), 15,954 tokens`: part of every caption."""
    documents = f"{len(result.nats)} documents ({result.effective_documents:.1f} effective)"
    return f"{documents}, {sum(result.tokens):,} tokens"
