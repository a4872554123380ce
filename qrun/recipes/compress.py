"""`qrun compress`: a model whose projections are truncated products, as a folder for every other command.

qrun compress compression=mpo compression.ratio=0.6 --out small      then: qrun eval perplexity model=local
                                                                     model.path=small
"""

from pathlib import Path
from typing import Any

from qrun.config.schema import Profile
from qrun.config.verbs import CompressConfig
from qrun.errors import InputError
from qrun.language.models import model_shape


def compress(config: CompressConfig, out: str) -> None:
    """Compress into the new folder `out` and say what is left."""
    from qrun.report.screen import say, table

    target = Path(out).expanduser()
    if target.exists():
        raise InputError(f"--out {out}: exists already; name a new folder")
    facts = compress_into(config, target)
    rows = [
        [
            "projections",
            f"{facts['projection_parameters']:,}",
            f"{facts['kept_parameters']:,}",
            f"{facts['kept_ratio']:.3f}",
        ],
        [
            "whole model",
            f"{facts['model_parameters']:,}",
            f"{facts['model_kept_parameters']:,}",
            f"{facts['model_kept_parameters'] / facts['model_parameters']:.3f}",
        ],
        ["bytes", f"{facts['model_bytes']:,}", f"{facts['model_kept_bytes']:,}", ""],
    ]
    table(
        f"{config.model.name} to {target}",
        ["", "original", "compressed", "ratio"],
        rows,
        "the folder's weights are dense, its factors.safetensors has the compressed size",
    )
    say(f"qrun eval perplexity model=local model.path={target} model.name={target.name}")


def compress_into(config: CompressConfig, target: Path) -> dict[str, Any]:
    """Load the model afresh, compress it, save it; returns the statement of sizes."""
    from qrun.compression.compress import check

    shape = model_shape(config.model)
    if shape is not None:
        check(config.compression, shape)
    import torch

    from qrun.adapters.sites import sites
    from qrun.compression.compress import compress as run
    from qrun.compression.compress import save
    from qrun.language import corpus, models
    from qrun.language.tokens import stream
    from qrun.report.screen import bar

    language = models.load(config.model)
    positions = min(512, language.shape.max_position_embeddings)
    ids = torch.zeros(1, positions, dtype=torch.long)
    if config.compression.activation_aware or config.compression.profile is Profile.sensitivity:
        text = corpus.load(config.data)
        tokens = torch.from_numpy(
            stream(
                language.tokenizer, text.splits["train"][: 50 + config.compression.calibration // 50], text.wikitext
            ).ids
        )
        count = max(1, config.compression.calibration // positions)
        if len(tokens) < count * positions:
            raise InputError(
                f"compression.calibration={config.compression.calibration}: the training split has only "
                f"{len(tokens)} tokens"
            )
        ids = tokens[: count * positions].view(count, positions)
    with bar("compressing", len(sites(language.shape)), "sites") as advance:
        compressed = run(language, config.compression, ids, lambda n: advance(n, ""))
        advance(0, f"{compressed.statement['kept_ratio']:.1%} of the projections kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    save(target, language, compressed)
    return compressed.statement
