"""Documents in three splits, with a digest: what a model is trained and measured on.

    load(DataConfig) -> Corpus      pydoc, libdocs, wikitext2 (hub or folder), text (a local file or folder), hub (any)

A document is the unit of the bootstrap. How documents become a token stream or scored pages is the protocol's business
(tokens.py).
"""

import hashlib
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qrun.config.schema import DataConfig
from qrun.errors import InputError
from qrun.language.docstrings import libdocs_documents, pydoc_documents
from qrun.language.hub import hub
from qrun.language.intake import parquet_column, read_rows, read_text
from qrun.language.overlap import NANO, all_grams, pretraining_share, read_sample, without

SPLITS = ("train", "validation", "test")
SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Corpus:
    """Text of one data source. `digests` has one per split; `source` says where it came from."""

    name: str
    splits: dict[str, list[str]]
    source: str
    wikitext: bool = False  # pages in WikiText's markup: rows joined and words counted by its conventions
    told: str = ""  # how a file was read, for a reader
    cut: Mapping[str, float] | None = None  # of a clean text: share of the characters that went from a split

    def overlap(self) -> str:
        """Shares of 13-grams of the held-out splits that stand in nano's pretraining text, for a reader."""
        shares = {split: pretraining_share(self.splits[split], read_sample(NANO)) for split in SPLITS[1:]}
        found = ", ".join(f"{split} {share:.1%}" for split, share in shares.items())
        cut = ", ".join(f"{split} {share:.1%}" for split, share in (self.cut or {}).items())
        return f"{found} of the 13-grams are in nano's training text" + (f"; cut out before: {cut}" if cut else "")

    @property
    def digests(self) -> dict[str, str]:
        return {split: text_digest(documents) for split, documents in self.splits.items()}


def text_digest(documents: Iterable[str]) -> str:
    """sha256 over the documents and their order, first 16 hex digits."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document.encode()).digest())
    return digest.hexdigest()[:16]


def split_by_hash(documents: Iterable[str], validation: float, test: float) -> dict[str, list[str]]:
    """Send each document to a split by the hash of its text: stable when other documents come or go."""
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for document in documents:
        u = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
        splits["test" if u < test else "validation" if u < test + validation else "train"].append(document)
    return splits


def split_in_order(documents: list[str], validation: float, test: float) -> dict[str, list[str]]:
    """Cut a running text. The first part trains, the last is the test, so that neighbours never sit on both sides but
    at the cuts."""
    size = len(documents)
    held_out, tested = round(size * (1 - validation - test)), round(size * (1 - test))
    return {"train": documents[:held_out], "validation": documents[held_out:tested], "test": documents[tested:]}


def load(config: DataConfig) -> Corpus:
    """Read the corpus of a config. Raises InputError for a missing, empty or broken text, or a hub out of reach."""
    loaders = {"pydoc": _pydoc, "libdocs": _libdocs, "wikitext2": _wikitext2, "text": _text, "hub": _hub}
    corpus = loaders[config.source](config)
    if config.documents is not None:
        drawn = {
            split: sorted(documents, key=lambda d: hashlib.sha256(d.encode()).digest()[8:])[: config.documents]
            for split, documents in corpus.splits.items()
        }
        corpus = replace(corpus, splits=drawn)
    if config.clean:
        corpus = cleaned(corpus)
    empty = [split for split in SPLITS if not any(d.strip() for d in corpus.splits[split])]
    if empty:
        count = sum(map(len, corpus.splits.values()))
        has = f"{corpus.source} has {count} documents" + (f" ({corpus.told})" if corpus.told else "")
        how = "give more, or larger data.validation, data.test or data.documents"
        raise InputError(f"data={corpus.name}: no text in split {', '.join(empty)}: {has}; {how}")
    return corpus


def cleaned(corpus: Corpus) -> Corpus:
    """The same training text, and of the held-out ones what nano's pretraining text and the splits before have not: a
    test passage that is trained on goes, and a validation passage that is in either of the two."""
    sample, others, kept, gone = read_sample(NANO), [all_grams(corpus.splits["train"])], {}, {}
    for split in ("test", "validation"):
        documents = corpus.splits[split]
        left = [document for document in (without(d, sample, others) for d in documents) if document]
        others.append(all_grams(left))
        kept[split], gone[split] = left, 1 - sum(map(len, left)) / max(sum(map(len, documents)), 1)
    splits = {split: kept.get(split, corpus.splits[split]) for split in SPLITS}
    return replace(corpus, splits=splits, cut=gone)


def _pydoc(config: DataConfig) -> Corpus:
    try:
        documents = pydoc_documents()
    except ImportError as error:
        how = "install its full standard library, or use data=text data.path=<file>"
        raise InputError(f"data=pydoc: this Python comes without pydoc_data; {how}") from error
    source = f"documentation of CPython {platform.python_version()} (PSF licence)"
    return Corpus(config.name, split_by_hash(documents, config.validation, config.test), source)


def _libdocs(config: DataConfig) -> Corpus:
    documents, characters = libdocs_documents()
    source = f"docstrings of {len(characters)} installed packages"
    splits, told = split_by_hash(documents, config.validation, config.test), ""
    trained = json.loads(NANO.with_name("training_record.json").read_text())["corpus"]["digest"]
    if (found := text_digest(splits["train"])) != trained:
        told = f"its training split is {found}, nano's was {trained}: other packages or shares, so held-out text may"
        told += " have been trained on; data.clean=true cuts that out"
    return Corpus(config.name, splits, source, told=told)


def _wikitext2(config: DataConfig) -> Corpus:
    told = ""
    if config.path is None:
        rows = _hub_rows(config)
        source = f"{config.hub_id} {config.hub_config} at {config.revision}"
    else:
        folder = Path(config.path)
        files = {split: _local_files(folder, split) for split in SPLITS}
        rows = {split: _local_rows(found) for split, found in files.items()}
        source, told = str(folder.resolve()), ", ".join(found[0].name for found in files.values())
    return Corpus("wikitext2", {split: wikitext_pages(lines) for split, lines in rows.items()}, source, True, told)


def _hub_rows(config: DataConfig) -> dict[str, list[str]]:
    from datasets import load_dataset

    with hub() as away:
        try:
            tables = load_dataset(config.hub_id, config.hub_config, revision=config.revision)
            return {split: list(tables[split]["text"]) for split in SPLITS}
        except Exception as error:  # the hub's client raises a different class for each way of being out of reach
            why = f"{config.hub_id} could not be fetched from the hub ({away or type(error).__name__})"
            how = "give data.path=<folder with wiki.train.raw, wiki.valid.raw, wiki.test.raw> or use data=pydoc"
            raise InputError(f"data={config.name}: {why}; {how}") from error


def _local_files(folder: Path, split: str) -> list[Path]:
    """A split as it is released: in the archives (wiki.valid.raw, wiki.valid.tokens, valid.txt) or as the hub's
    parquet; else the only text whose name begins with the split's."""
    short = {"validation": "valid"}.get(split, split)
    texts = dict.fromkeys((f"wiki.{short}.raw", f"wiki.{short}.tokens", f"{split}.txt", f"{short}.txt"))
    tables = tuple(f"{place}{split}{end}" for place in ("", "*/") for end in (".parquet", "-*.parquet"))
    for pattern in (*texts, *tables, f"{split}*.txt"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1 and (pattern.endswith(".txt") or len({path.parent for path in found}) > 1):
            several = " and ".join(str(path.relative_to(folder)) for path in (found[0], found[-1]))
            raise InputError(f"data.path={folder}: {several} could both be the {split} text; leave one there")
        if found:
            return found
    possible = f"accepted are {', '.join(texts)} and {tables[1]}"
    raise InputError(f"data.path={folder}: no wiki.{short}.raw and no other {split} text there; {possible}")


def _local_rows(files: list[Path]) -> list[str]:
    """Rows as the hub gives them: lines with their newline, blank lines empty."""
    if files[0].suffix == ".parquet":
        return [text for path in files for text in parquet_column(path, "data.path")]
    text = read_text(files[0], "data.path")
    return [line if line.strip() else "" for line in io.StringIO(text, newline="\n")]


def wikitext_pages(rows: list[str]) -> list[str]:
    """Split rows into pages at top-level headings `= Title =`, as EleutherAI/wikitext_document_level does (62 pages
    in the test split)."""
    pages: list[list[str]] = [[]]
    for row in rows:
        line = row if row.strip() else " \n"
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" =") and any(r.strip() for r in pages[-1]):
            pages.append([])
        pages[-1].append(line)
    return ["".join(page) for page in pages]


def _text(config: DataConfig) -> Corpus:
    path = Path(str(config.path))
    if not os.path.isdir(path):
        rows = read_rows(path, "data.path")
        cut = split_in_order if rows.running else split_by_hash
        return Corpus("text", cut(rows.texts, config.validation, config.test), str(path.resolve()), told=rows.told)
    splits, told = {}, ""
    for split in SPLITS:
        names = [f"{name}{suffix}" for name in (split, split[:5]) for suffix in SUFFIXES]
        found = [path / name for name in dict.fromkeys(names) if (path / name).exists()]
        if not found:
            raise InputError(f"data.path={path}: no {split}.txt there, nor with {', '.join(SUFFIXES[1:])}")
        rows = read_rows(found[0], "data.path")
        splits[split], told = rows.texts, told or rows.told
    return Corpus("text", splits, str(path.resolve()), told=told)


def _hub(config: DataConfig) -> Corpus:
    """Rows of any dataset of the hub, or of a folder in its layout, as a stream."""
    from datasets import load_dataset

    local = Path(config.path) if config.path else None
    if local is not None and not os.path.isdir(local):
        raise InputError(f"data.path={local}: no such folder")
    where = str(local.resolve() if local else config.hub_id)
    with nullcontext("") if local else hub() as away:
        try:
            found = load_dataset(
                where, config.hub_config, revision=config.revision, split=config.split, streaming=True
            )  # fmt: skip
            missing = [split for split in SPLITS if config.split is None and split not in found]
            if missing:
                how = f"give one, data.split={next(iter(found))}, to have it cut in three"
                has = f"{where} has the splits {', '.join(found)}, not {' nor '.join(missing)}"
                raise InputError(f"data.split=null: {has}; {how}")
            if config.split is None:
                splits = {split: _column(config, where, found[split]) for split in SPLITS}
            else:
                splits = split_by_hash(_column(config, where, found), config.validation, config.test)
        except InputError:
            raise
        except Exception as error:  # the hub's client raises a different class for each way of being out of reach
            why = away or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"data={config.name}: {where} could not be read ({why})") from error
    at, most = config.revision or "its newest revision", f", first {config.rows} rows" if config.rows else ""
    return Corpus(config.name, splits, where if local else f"{where} {config.hub_config or ''} at {at}{most}")


def _column(config: DataConfig, where: str, table: Any) -> list[str]:
    """The texts of a datasets.IterableDataset, without empty ones."""
    column, texts = str(config.column), []
    for row in table if config.rows is None else table.take(config.rows):
        if column not in row:
            raise InputError(f"data.column={column}: not in {where}; its columns are {', '.join(row)}")
        if not isinstance(row[column], str | None):
            raise InputError(f"data.column={column}: holds values of type {type(row[column]).__name__}, not text")
        texts.append(row[column] or "")
    return [text for text in texts if text.strip()]
