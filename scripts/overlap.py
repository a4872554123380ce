"""What of a text nano has seen, and how many documents stand behind a number on it: a row per text and held-out split.

    python scripts/overlap.py pydoc_clean libdocs_sample protocol=study evaluation.max_tokens=28672

Words with `=` are those of `qrun eval perplexity`; others are options of the group `data`. Columns: documents and
tokens of the split, share of its 13-grams that stand in nano's training text and in the text's own training split,
share of characters that data.clean cut out before, and documents, effective documents and tokens of a measurement.
"""

import sys

from qrun.config.compose import compose
from qrun.config.schema import Split
from qrun.evaluation.intervals import effective_number
from qrun.evaluation.protocols import build
from qrun.language import corpus, models
from qrun.language.overlap import NANO, all_grams, pretraining_share, read_sample, share
from qrun.language.tokens import stream
from qrun.report.screen import table


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return
    words = [word for word in sys.argv[1:] if "=" in word]
    rows = []
    for name in [word for word in sys.argv[1:] if "=" not in word] or ["pydoc_clean"]:
        config = compose("perplexity", [f"data={name}", *words])
        language, text = models.load(config.model), corpus.load(config.data)
        own = all_grams(text.splits["train"])
        for split in (Split.validation, Split.test):
            documents = text.splits[split.value]
            config.evaluation.split = split
            positions = language.shape.max_position_embeddings
            task = build(config.protocol, config.evaluation, text, language.tokenizer, positions)
            seen = pretraining_share(documents, read_sample(NANO))
            cut = f"{text.cut[split.value]:.1%}" if text.cut else "-"
            rows.append([
                name, split.value, f"{len(documents):,}", f"{len(stream(language.tokenizer, documents).ids):,}",
                f"{seen:.2%}", f"{share(documents, own):.2%}", cut, f"{len(task.documents):,}",
                f"{effective_number(task.documents):.1f}", f"{task.scored:,}",
            ])  # fmt: skip
    head = ["text", "split", "documents", "tokens", "in nano's", "in train", "cut out", "measured", "effective"]
    title = "13-grams of words that were seen, and documents behind a number"
    table(title, [*head, "scored"], rows, "nano's tokens")


if __name__ == "__main__":
    main()
