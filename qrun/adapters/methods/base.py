"""What a method of adaptation has to say; the defaults are those of a control that PEFT makes. No torch at import."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrun.adapters.sites import Site, check_divides
from qrun.config.schema import AdapterConfig

if TYPE_CHECKING:
    from qrun.adapters.forms import Form
    from qrun.adapters.linear import Adapter


EQUAL = 1.1  # largest ratio of two counts of parameters that are called equal


class Method:
    """The docstring's first line is the method's title on a model card."""

    lr: float | None = None  # middle of a study's scan, at b = 4 or rank 1; None takes the adapter's own training.lr
    blocked = False  # blocks of adapter.dim channels, which must divide every width; lr falls with b
    circuits = False  # blocks that can run on a device; has sides and a sign rule
    control = True  # can be named in study.controls
    options: dict[str, Any] = {}  # noqa: RUF012  its own words, adapter.options.<word>, with their defaults

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def title(self) -> str:
        return (inspect.getdoc(self) or self.name).splitlines()[0].rstrip(".")

    def check(self, config: AdapterConfig, sites: Sequence[Site]) -> None:
        """Raise InputError for a config that does not fit the sites."""
        if self.blocked:
            check_divides(sites, config.dim, config.side)

    def count(self, config: AdapterConfig, sites: Sequence[Site]) -> int | None:
        """Trained parameters; None where only the loaded model knows."""
        raise NotImplementedError

    def flop(self, config: AdapterConfig, sites: Sequence[Site]) -> int | None:
        """Multiplications and additions a token where the adapter is not merged into W; None where nobody counted."""
        return 2 * config.dim * sum(site.width(config.side) for site in sites) if self.blocked else None

    def label(self, config: AdapterConfig) -> str:
        """Short name with size, `oft-b4`: part of a run's name."""
        return self.name + (f"-b{config.dim}" if self.blocked else "")

    def steps(self, lr: float, clip: float, config: AdapterConfig, exponent: float) -> tuple[float, float]:
        """Learning rate and gradient clipping at this size, from those stated for b = 4 or rank 1."""
        return lr * (4 / config.dim) ** exponent if self.blocked else lr, clip

    def matched(self, config: AdapterConfig, sites: Sequence[Site], budget: int) -> AdapterConfig:
        """This method at the adapter's sites, or at some of them, its trained parameters as close to `budget` as its
        sizes allow. A method without blocks has no b: one training of it serves all."""
        options = config.options if config.method == self.name else {}
        return replace(config, method=self.name, options=options, dim=config.dim if self.blocked else AdapterConfig.dim)

    def attach(
        self, model: Any, sites: Sequence[Site], config: AdapterConfig, folder: str | Path | None = None
    ) -> "Adapter":
        """Freeze `model` (a *ForCausalLM) and put trainable layers on the sites, in place; they start as the identity.
        `folder` is the model's own. Raises InputError as `check` does."""
        self.check(config, sites)
        adapter = self.build(model, sites, config, folder)
        stated = self.count(config, sites)
        if stated is not None and stated != adapter.count():
            raise AssertionError(f"{self.name}: {adapter.count()} trainable parameters, expected {stated}")
        return adapter

    def build(self, model: Any, sites: Sequence[Site], config: AdapterConfig, folder: str | Path | None) -> "Adapter":
        """The layers behind `attach`; PEFT's, unless a method brings its own."""
        from qrun.adapters.layers import inject

        return inject(model, sites, config, self.peft_config(config, [f"model.{site.name}" for site in sites]))

    def peft_config(self, config: AdapterConfig, targets: list[str]) -> Any:
        """PEFT's config for the modules of these names. Import peft inside: it takes five seconds."""
        raise NotImplementedError


class BlockMethod(Method):
    """Orthogonal blocks on one side of the projection (adapters/linear.py), which can run as circuits."""

    blocked = circuits = True

    def form(self, config: AdapterConfig, site: str) -> "Form":
        """How the blocks of the site of that name come from its parameters. Import the form inside: torch is heavy."""
        raise NotImplementedError

    def build(self, model: Any, sites: Sequence[Site], config: AdapterConfig, folder: str | Path | None) -> "Adapter":
        from qrun.adapters.linear import attach

        return attach(model, sites, config, lambda site: self.form(config, site.name))


class OwnMethod(Method):
    """A control with a layer of ours (adapters/layers.py)."""

    def layer(self, config: AdapterConfig, site: Site, base: Any) -> Any:
        """The nn.Module that takes the place of the nn.Linear `base`. Import the layer inside: torch is heavy."""
        raise NotImplementedError

    def build(self, model: Any, sites: Sequence[Site], config: AdapterConfig, folder: str | Path | None) -> "Adapter":
        from qrun.adapters.layers import wrapped

        return wrapped(model, sites, config, lambda site, base: self.layer(config, site, base))
