"""What a cell computes, as descriptions that travel to another process.

Train an adapter, or measure a trained one on a device.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrun.adapters.sites import check_divides, select, sites
from qrun.cells.pool import Cell
from qrun.cells.schedule import cell_key
from qrun.config.schema import AdapterConfig, DeviceConfig, Method, NoiseConfig, Sign
from qrun.config.verbs import Indivisible, SiteSet, StudyConfig, TrainConfig
from qrun.errors import InputError
from qrun.language.models import model_shape

TRAIN_KEYS = [f.name for f in dataclasses.fields(TrainConfig)]


@dataclass(frozen=True)
class TrainWork:
    """`qrun train` with this config."""

    config: TrainConfig

    def run(self, shelf: Any, tags: dict[str, str]) -> None:
        """Train, measure, save; an unfinished checkpoint of the cell is continued."""
        from qrun.recipes.train import train

        train(self.config, resume=True, shelf=shelf, cell=tags)


@dataclass
class NoisyConfig(TrainConfig):
    """A trained adapter's config and the device it is measured on."""

    device: DeviceConfig = dataclasses.field(default_factory=DeviceConfig)
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)
    sign: Sign = Sign.input


@dataclass(frozen=True)
class NoisyWork:
    """An adapter on a device.

    The trained one of run `trained`, or (`values`) the null K = 0 or a fixed rotation with its entries shuffled.
    """

    config: NoisyConfig
    trained: str  # run id
    name: str  # of this run
    values: str = "trained"  # trained, zero, shuffled
    params: tuple[tuple[str, Any], ...] = ()

    def run(self, shelf: Any, tags: dict[str, str]) -> None:
        """Measure and leave the paired differences to the frozen model and to the exact adapter."""
        import torch

        from qrun.adapters.linear import detach
        from qrun.adapters.saving import read
        from qrun.evaluation.perplexity import Measurement, difference
        from qrun.recipes.device import open_executor
        from qrun.recipes.record import attach_saved, flat_params, measured, record_measurements
        from qrun.recipes.record import tags as run_tags
        from qrun.tracking.store import Store

        config, opened, store = self.config, shelf.open(self.config), Store(self.config.results)
        base, exact = (
            Measurement.from_json(store.artifact_text(self.trained, f"perplexity_{which}.json"))
            for which in ("base", "adapted")
        )
        folder = store.folder / "runs" / store.client.get_run(self.trained).info.run_name / "adapter"
        adapter = attach_saved(opened.language, read(folder), folder)
        try:
            if self.values != "trained":
                generator = torch.Generator().manual_seed(config.seed)
                adapter.load(
                    {
                        name: shuffled(value, generator) if self.values == "shuffled" else value * 0
                        for name, value in adapter.snapshot().items()
                    }
                )
            executor = open_executor(config, config.adapter.dim, config.sign) if config.device.kind != "exact" else None
            adapter.set_executor(executor)
            params = {**flat_params(config), "trained_by": self.trained, "values": self.values, **dict(self.params)}
            with store.run("study", self.name, params, {**run_tags(config, opened), **tags}) as record:
                result = measured("on circuits", opened.language.model, opened.task, config.evaluation.batch)
                gain = difference(base, result, config.evaluation.resamples, config.seed)
                penalty = difference(result, exact, config.evaluation.resamples, config.seed)
                record_measurements(record, {"base": base, "noisy": result}, gain)
                interval = (
                    {"penalty_low": penalty.low, "penalty_high": penalty.high} if penalty.low == penalty.low else {}
                )
                record.metrics(
                    {
                        "penalty": penalty.value,
                        **interval,
                        "parameters": adapter.count() if self.values == "trained" else 0,
                    }
                )
                if executor is not None:
                    record.metrics({f"circuit/{name}": value for name, value in executor.statistics.summary().items()})
        finally:
            adapter.set_executor(None)
            detach(opened.language.model, adapter)


def shuffled(value: Any, generator: Any) -> Any:
    """A rotation of the same size that knows nothing: the entries of K in another order and with other signs."""
    import torch

    order = torch.randperm(value.numel(), generator=generator)
    signs = torch.randint(0, 2, (value.numel(),), generator=generator) * 2 - 1
    return (value.cpu().flatten()[order] * signs).view(value.shape).to(value.device)


def at_sites(adapter: AdapterConfig, chosen: SiteSet) -> AdapterConfig:
    """The adapter at all sites, at the paper's one, or where its own words put it."""
    if chosen is SiteSet.adapter:
        return adapter
    where = (
        {"projections": "all", "layers": "all"}
        if chosen is SiteSet.all
        else {"projections": ["v_proj"], "layers": "last"}
    )
    return dataclasses.replace(adapter, **where)


def usable_dims(config: Any) -> tuple[dict[SiteSet, list[int]], list[str]]:
    """Block dimensions of each site set that divide every site, and a line for each one left out.

    Raises InputError with study.indivisible=stop.
    """
    shape, study = model_shape(config.model), config.study
    kept: dict[SiteSet, list[int]] = {}
    said = []
    for chosen in study.sites:
        kept[chosen] = []
        adapter = at_sites(config.adapter, chosen)
        for dim in study.dims:
            try:
                if shape is not None:
                    check_divides(select(sites(shape), adapter.projections, adapter.layers), dim, adapter.side)
                kept[chosen].append(dim)
            except InputError as error:
                if study.indivisible is Indivisible.stop:
                    raise InputError(f"{error} (study.indivisible=skip leaves such dimensions out)") from None
                said.append(
                    f"left out, sites={chosen.value} b={dim}: {str(error).partition(': ')[2].partition(';')[0]}"
                )
        if not kept[chosen]:
            raise InputError(f"study.dims={study.dims}: none divides every site of study.sites={chosen.value}")
    return kept, said


def control_lr(config: Any, name: str) -> float:
    """Learning rate of a control; OFT is the adapter's own map and takes its steps."""
    return config.training.lr if name == "oft" else config.study.control_lr[name]


def training_config(config: TrainConfig, adapter: AdapterConfig, seed: int, lr: float, **changes: Any) -> TrainConfig:
    """The config of `qrun train` for a cell.

    The study's words with this adapter, seed and learning rate, scaled to b or to LoRA's rank.
    """
    study: StudyConfig = config.study  # type: ignore[attr-defined]
    values = {name: getattr(config, name) for name in TRAIN_KEYS} | changes
    scaled = adapter.method in (Method.cayley, Method.oft, Method.boft, Method.block)
    lr = (
        lr * (4 / adapter.dim) ** study.lr_exponent
        if scaled
        else lr / adapter.rank**0.5
        if adapter.method is Method.lora
        else lr
    )
    clip = config.training.clip
    if (
        adapter.method is Method.oft
    ):  # PEFT's parameter is -K/2: the same step is half as long, its gradient twice as large
        lr, clip = lr / 2, clip * 2
    training = dataclasses.replace(values["training"], lr=lr, clip=clip)
    return TrainConfig(**{**values, "adapter": adapter, "training": training, "seed": seed, "name": None})


def training_cell(cell: TrainConfig, weights: str, data: dict[str, str], label: str, **more: Any) -> Cell:
    """The cell that trains this config; studies that describe the same training share it."""
    key = cell_key(cell, weights, data, **more)
    from qrun.recipes.train import method_words

    cell.name = f"{cell.model.name}-{method_words(cell)}-s{cell.seed}-{key[:8]}"
    weights_file = (
        Path(cell.results).expanduser().resolve() / "runs" / cell.name / "adapter" / "adapter_model.safetensors"
    )
    return Cell(label, key, TrainWork(cell), weights_file)


def noisy_cell(work: NoisyWork, weights: str, data: dict[str, str], trained_key: str, label: str) -> Cell:
    """The cell that measures a trained adapter on a device."""
    return Cell(label, cell_key(work.config, weights, data, adapter=trained_key, values=work.values), work)
