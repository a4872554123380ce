"""`qrun compress`: a model whose projections are truncated products, as a folder for every other command.

qrun compress compression=mpo compression.ratio=0.6 --out small
"""

from pathlib import Path
from typing import Any

import torch

from qrun.adapters.sites import sites
from qrun.compression.compress import compress as factor
from qrun.compression.compress import save
from qrun.compression.forms import check
from qrun.config.verbs import CompressConfig
from qrun.errors import InputError
from qrun.evaluation.protocols import check_ids
from qrun.language import corpus, models
from qrun.language.tokens import stream
from qrun.report.screen import bar, say, table


def compress(config: CompressConfig, out: str) -> None:
    """Compress into the new folder `out` and say what is left."""
    target = Path(out)
    facts = compress_into(config, target)
    rows = []
    for title, whole, kept in (
        ("projections", "projection_parameters", "kept_parameters"),
        ("whole model", "model_parameters", "model_kept_parameters"),
        ("bytes", "model_bytes", "model_kept_bytes"),
    ):
        rows.append([title, f"{facts[whole]:,}", f"{facts[kept]:,}", f"{facts[kept] / facts[whole]:.3f}"])
    caption = "the folder's weights are dense, its factors.safetensors has the compressed size"
    table(f"{config.model.name} to {target}", ["", "original", "compressed", "ratio"], rows, caption)
    say(f"qrun eval perplexity model=local model.path={target} model.name={target.name}")


def compress_into(config: CompressConfig, target: Path) -> dict[str, Any]:
    """Load the model afresh, compress it, save it; returns the statement of sizes."""
    shape, compression = models.model_shape(config.model), config.compression
    if shape is not None:
        check(compression, shape)
    language = models.load(config.model)
    positions = min(512, language.shape.max_position_embeddings)
    ids = torch.zeros(1, positions, dtype=torch.long)
    if compression.calibrated:
        text = corpus.load(config.data)
        documents, taken = text.splits["train"], 50 + compression.calibration // 50
        count = max(1, compression.calibration // positions)
        tokens = stream(language.tokenizer, documents[:taken], text.wikitext).ids
        while len(tokens) < count * positions and taken < len(documents):
            taken *= 2
            tokens = stream(language.tokenizer, documents[:taken], text.wikitext).ids
        if len(tokens) < count * positions:
            why = f"the training split has only {len(tokens)} tokens"
            raise InputError(f"compression.calibration={compression.calibration}: {why}")
        check_ids(language.model, tokens)
        ids = torch.from_numpy(tokens[: count * positions]).view(count, positions)
    with bar("compressing", len(sites(language.shape)), "sites") as advance:
        compressed = factor(language, compression, ids, lambda n: advance(n, ""))
        advance(0, f"{compressed.statement['kept_ratio']:.1%} of the projections kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    save(target, language, compressed)
    return compressed.statement
