"""Learning rates of the controls: every method at a few rates, 30 steps, compared on validation text only (seed 100,
which no study uses).

python scripts/scan_lr.py [method ...]        about 20 s a row on two cores; the best rates stand in
                                              configs/sweep_controls.yaml and configs/recover.yaml
"""

import sys
import tempfile
from pathlib import Path

import torch

from qrun.adapters.controls import attach_method
from qrun.adapters.linear import detach
from qrun.adapters.sites import select, sites
from qrun.config.compose import compose
from qrun.config.schema import EvaluationConfig, Split
from qrun.errors import RunFailed
from qrun.evaluation.perplexity import measure
from qrun.evaluation.protocols import build
from qrun.recipes.record import Shelf
from qrun.report.screen import silenced
from qrun.training.checkpoint import Progress
from qrun.training.interrupt import Interrupt
from qrun.training.loop import fit

GRID = {
    "cayley": (0.003, 0.006, 0.012, 0.02, 0.03),
    "boft": (0.003, 0.006, 0.012),
    "lora": (0.002, 0.005, 0.01, 0.02, 0.04),
    "diagonal": (0.005, 0.01, 0.02, 0.05),
    "block": (0.001, 0.002, 0.005, 0.01, 0.02),
    "dense": (0.0002, 0.0005, 0.001, 0.002),
}


def main() -> None:
    torch.set_num_threads(1)
    shelf = Shelf()
    for method in sys.argv[1:] or GRID:
        for lr in GRID[method]:
            size = ["adapter.dim=2", "adapter.factors=3"] if method == "boft" else []
            config = compose(
                "train",
                [
                    "training=study",
                    "seed=100",
                    f"training.lr={lr * (2 if size else 1)}",
                    f"adapter.method={method}",
                    *size,
                ],
            )
            with silenced():
                opened = shelf.open(config)
            language = opened.language
            watched = EvaluationConfig(split=Split.validation, max_tokens=16384)
            task = build(config.protocol, watched, opened.corpus, language.tokenizer, 512)
            torch.manual_seed(config.seed)
            chosen = select(sites(language.shape), config.adapter.projections, config.adapter.layers)
            adapter = attach_method(language.model, chosen, config.adapter)

            def validate(language=language, task=task) -> float:
                result = measure(language.model, task, 8)
                return sum(result.nats) / sum(result.tokens)

            windows, path = opened.training_windows(512), Path(tempfile.mkdtemp()) / "state.safetensors"
            try:
                _, end = fit(
                    language.model, adapter, windows, validate, config.training, config.seed, None,
                    path, Progress(), lambda _: None, Interrupt()
                )  # fmt: skip
                print(
                    f"{method:9} lr {lr:<7g} validation {end.evaluations[0]['validation_nats']:.4f} -> "
                    f"{end.evaluations[-1]['validation_nats']:.4f}",
                    flush=True,
                )
            except RunFailed as error:
                print(f"{method:9} lr {lr:<7g} {error}", flush=True)
            finally:
                detach(language.model, adapter)


if __name__ == "__main__":
    main()
