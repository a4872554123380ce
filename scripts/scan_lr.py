"""Learning rates of the controls: every method at a few rates, 30 steps, compared on validation text only (seed 100,
which no study uses).

python scripts/scan_lr.py [method ...] [key=value ...]   about 20 s a row on two cores; a method's best rate stands
                                                         in its module as `lr`
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

from qrun.adapters.linear import detach
from qrun.adapters.methods import names, spec
from qrun.adapters.sites import select, sites
from qrun.cells.workspace import Workspace
from qrun.config.compose import compose
from qrun.errors import RunFailed
from qrun.evaluation.perplexity import measure
from qrun.recipes.fitting import validation_task
from qrun.report.screen import silenced
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt
from qrun.training.loop import fit

FACTORS = (0.25, 0.5, 1, 2, 4)  # around the rate that the method's module states


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    torch.set_num_threads(1)
    workspace = Workspace()
    words = [word for word in sys.argv[1:] if "=" in word]
    for name in [word for word in sys.argv[1:] if "=" not in word] or names():
        if name == "healing":
            continue  # needs a compressed model
        config = compose("train", ["training=study", "data=pydoc_clean", "protocol=study", "seed=100", *words])
        for lr in [(spec(name).lr or config.training.lr) * factor for factor in FACTORS]:
            with silenced():
                opened = workspace.open(config)
            language, task = opened.language, validation_task(config, opened)
            torch.manual_seed(config.seed)
            chosen = select(sites(language.shape), config.adapter.projections, config.adapter.layers)
            budget = spec(config.adapter.method).count(config.adapter, chosen) or 0
            matched = spec(name).matched(config.adapter, chosen, budget)
            adapter = spec(name).attach(language.model, chosen, matched)
            label = spec(name).label(matched)
            rate, clip = spec(name).steps(lr, config.training.clip, matched, 1.0)
            training = dataclasses.replace(config.training, lr=rate, clip=clip)

            def validate(language=language, task=task) -> float:
                result = measure(language.model, task, 8)
                return sum(result.nats) / sum(result.tokens)

            windows = opened.training_windows(config.training.context)
            path = Path(tempfile.mkdtemp()) / "state.safetensors"
            try:
                _, end = fit(
                    language.model, adapter, windows, validate, training, config.seed, None,
                    path, Progress(), lambda _: None, Interrupt()
                )  # fmt: skip
                print(
                    f"{label:9} lr {lr:<7g} validation {end.evaluations[0]['validation_nats']:.4f} -> "
                    f"{end.evaluations[-1]['validation_nats']:.4f}",
                    flush=True,
                )
            except RunFailed as error:
                print(f"{label:9} lr {lr:<7g} {error}", flush=True)
            finally:
                detach(language.model, adapter)


if __name__ == "__main__":
    main()
