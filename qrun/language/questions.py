"""Multiple-choice questions with two to ten answers.

continuation   which of four passages continues this text? Built by seed from the held-out part of the studies'
               `pydoc_clean`: needs no network
mmlu           Massive Multitask Language Understanding (arXiv:2009.03300): hub, or a folder or file of CSV, JSON lines
               or parquet, of these or any other questions, asked by letters
"""

import os
import random
import re
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from qrun.config.schema import DataConfig, QuestionsConfig
from qrun.errors import InputError
from qrun.language import corpus
from qrun.language.corpus import text_digest
from qrun.language.hub import hub
from qrun.language.intake import csv_rows, json_rows, parquet_rows, read_text, regular
from qrun.language.prompts import as_chat

LETTERS = "ABCDEFGHIJ"
SUFFIXES = ("csv", "jsonl", "parquet")
COLUMNS = ("question", "choices", "answer")
SHARD = re.compile(r"-\d+-of-(\d+)\b")  # of a split's parquet files on the hub
CONTINUED = DataConfig("pydoc_clean", "pydoc", validation=0.2, test=0.5, clean=True)  # the studies' text


@dataclass(frozen=True)
class Question:
    """`prompt` is fed, `choices` are scored after it; `answer` is the index of the right one. `turns` are the roles and
    texts of the prompt as a chat: topic, examples and answers, question; without any it is one message."""

    name: str  # subject and index
    text: str
    prompt: str
    choices: tuple[str, ...]
    shown: tuple[str, ...]  # the answers as a reader sees them
    answer: int
    reported: str = ""  # what the paper says about it
    document: int = -1  # which it was cut from; -1: it stands alone
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """Questions, where they came from, and a digest of everything that is fed and scored."""

    name: str
    questions: list[Question]
    source: str
    chat: bool = False  # prompts are in a chat template, special tokens and all

    @property
    def clusters(self) -> list[int]:
        """Which questions belong together, by the document they were cut from."""
        return [i if q.document < 0 else q.document for i, q in enumerate(self.questions)]

    @property
    def digest(self) -> str:
        return text_digest(f"{q.prompt}\0{q.choices}\0{q.answer}" for q in self.questions)


def in_chat(asked: QuestionSet, tokenizer: Any) -> QuestionSet:
    """Prompts in the tokenizer's chat template, as lm-evaluation-harness has them: the topic is the system's, examples
    are turns, and the answer opens a line of its own and has no space before it."""
    put = [
        replace(
            q, prompt=as_chat(tokenizer, q.turns or [("user", q.prompt)]), choices=tuple(c.lstrip() for c in q.choices)
        )
        for q in asked.questions
    ]
    return replace(asked, questions=put, chat=True)


def load(config: QuestionsConfig, seed: int) -> QuestionSet:
    """Read or build the set. Raises InputError for missing files, wrong columns, an answer out of range and an empty
    set."""
    built = config.source == "continuation"
    questions, source = (_continuation(config, seed), "pydoc_clean, test split") if built else _mmlu(config)
    questions = questions[: config.limit]
    if not questions:
        raise InputError(f"questions={config.name}: no questions there")
    return QuestionSet(config.name, questions, source)


@cache
def _held_out() -> list[str]:
    """Documents that continuations are cut from, each in one line."""
    return [" ".join(document.split()) for document in corpus.load(CONTINUED).splits["test"]]


def _continuation(config: QuestionsConfig, seed: int) -> list[Question]:
    """Passages start at a word; wrong ones come from other documents, so style alone does not decide."""
    documents = _held_out()
    need = config.context + 2 * config.characters
    documents = [d for d in documents if len(d) > need]
    if len(documents) < 4:
        asked = f"questions.context={config.context}, questions.characters={config.characters}"
        raise InputError(f"{asked}: fewer than four held-out documents are that long")
    rng = random.Random(seed)

    def cut(document: str, before: int) -> tuple[str, str]:
        middle = end = -1
        while min(middle, end) < 0:  # once more where a word is longer than the context or the passage
            start = document.index(" ", rng.randrange(len(document) - need)) + 1
            middle = document.rfind(" ", start, start + before) if before else start - 1
            end = document.rfind(" ", middle + 1, middle + 1 + config.characters)
        return document[start:middle], document[middle:end]

    found = []
    for index in range(config.limit or 200):
        right, *wrong = rng.sample(range(len(documents)), 4)
        context, passage = cut(documents[right], config.context)
        passages = [passage, *(" " + cut(documents[other], 0)[1].strip() for other in wrong)]
        order = rng.sample(range(4), 4)
        choices, name = tuple(passages[k] for k in order), f"continuation {index}"
        shown = tuple(choice.strip() for choice in choices)
        found.append(Question(name, context, context, choices, shown, order.index(0), document=right))
    return found


def _mmlu(config: QuestionsConfig) -> tuple[list[Question], str]:
    subjects = config.subjects
    if config.path is not None:
        root = Path(config.path)
        read, source = partial(_local, root), str(root.resolve())
        if not os.path.isdir(root):
            regular(root, "questions.path")
        if not subjects:
            tests = [*(f"*_test.{suffix}" for suffix in SUFFIXES[:2]), "*test*.parquet"]
            files = sorted(path for pattern in tests for path in root.rglob(pattern))
            tables = dict.fromkeys(p.parent.name for p in files if p.suffix == ".parquet")
            tables = {"all": None} if "all" in tables else tables  # the hub's folder of that name has them all again
            named = (p.stem.removesuffix("_test") for p in files if p.suffix != ".parquet")
            subjects = [*dict.fromkeys([*named, *tables])]
            if root.is_file():
                subjects = [root.stem.removesuffix("_test")]
        elif root.is_file() and len(subjects) > 1:
            raise InputError(f"questions.subjects={subjects}: {root} is one file, and so one subject")
    elif config.hub_id is None:
        how = "give questions.path=<.csv, .jsonl or .parquet file, or a folder>"
        raise InputError(f"questions={config.name} (questions.source={config.source}): {how}")
    else:
        read, source = partial(_hub, config), f"{config.hub_id} at {config.revision}"
        subjects = subjects or ["all"]
    if not subjects:
        raise InputError(f"questions.path={config.path}: no <subject>_test.csv or .jsonl and no parquet file there")
    found, aside = [], 0
    for place, subject in enumerate(subjects):
        rows = read(subject, "test")
        # never one of the scored: a dev split, or where there is none the first rows, which are then not scored
        examples = [row for row in read(subject, "dev") if row not in rows] if config.examples else []
        held = 0 if examples else config.examples
        examples, aside = (examples or rows)[: config.examples], aside + min(held, len(rows))
        topic = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        shots = [(_block(row), LETTERS[row["answer"]]) for row in examples]
        turns = [("system", head), *(turn for q, a in shots for turn in (("user", q), ("assistant", a)))]
        head += "".join(f"{question} {letter}\n\n" for question, letter in shots)
        chosen = [config.pick[place]] if config.pick else range(held, len(rows))
        for index in chosen:
            if not held <= index < len(rows):
                has = f"{subject} has {len(rows)} questions" + (f", the first {held} are examples" if held else "")
                raise InputError(f"questions.pick={config.pick}: {has}")
            row, name = rows[index], f"{subject} {index}"
            reported = config.reported[place] if config.reported else ""
            block, shown = _block(row), tuple(row["choices"])
            letters, chat = tuple(f" {letter}" for letter in LETTERS[: len(shown)]), (*turns, ("user", block))
            text, right = row["question"], row["answer"]
            found.append(Question(name, text, head + block, letters, shown, right, reported, turns=chat))
    return found, source + (f"; the first {aside} rows are examples and not scored" if aside else "")


def _block(row: dict[str, Any]) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return f"{row['question'].strip()}\n{choices}\nAnswer:"


def _local(root: Path, subject: str, split: str) -> list[dict[str, Any]]:
    """Rows of a split; none of a dev split that is not there."""
    patterns = (*(f"{subject}_{split}.{suffix}" for suffix in SUFFIXES[:2]), f"{subject}/{split}*.parquet")
    named = [root] if root.is_file() else [path for pattern in patterns for path in sorted(root.rglob(pattern))]
    if split == "dev" and (root.is_file() or not named):
        return []
    if not named:
        raise InputError(f"questions.path={root}: no {' and no '.join(patterns)} there")
    return [row for path in _shards(named, subject) for row in _rows(path)]


def _shards(named: list[Path], subject: str) -> list[Path]:
    """The one file of a subject, or all of the hub's `test-00000-of-00002.parquet`."""
    parts = [SHARD.search(path.name) for path in named]
    if parts[0] is None and len(named) == 1:
        return named
    counts = {(path.parent, part and int(part[1])) for path, part in zip(named, parts, strict=True)}
    if counts == {(named[0].parent, len(named))}:
        return named
    has = ", ".join(map(str, named[:3]))
    raise InputError(f"questions.path: {subject} has {len(named)} files that are not one set of questions: {has}")


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = [(r["question"], r["choices"], r["answer"]) for r in parquet_rows(path, "questions.path", COLUMNS)]
    elif suffix in (".jsonl", ".json"):
        rows = [tuple(row[column] for column in COLUMNS) for row in json_rows(path, "questions.path", COLUMNS)]
    elif suffix == ".csv":
        rows = _table(path)
    else:
        raise InputError(f"questions.path={path}: give a .csv, .jsonl or .parquet file, or a folder of them")
    return [_row(number, *row, path) for number, row in enumerate(rows, start=1)]


def _table(path: Path) -> list[tuple[str, list[str], str]]:
    """Rows of a CSV file with a header, or as MMLU's original files without one."""
    lines = [line for line in csv_rows(read_text(path, "questions.path"), path, "questions.path") if line]
    expected = f"question, 2 to {len(LETTERS)} choices, answer (its number from 0, or its letter), between commas"
    header = [name.strip().lower() for name in lines[0]] if lines else []
    if {"question", "answer"} <= set(header):
        if header[0] != "question" or header[-1] != "answer":
            raise InputError(f"{path}: the columns are {', '.join(header)[:100]}; expected {expected}")
        lines = lines[1:]
    wrong = next((n for n, line in enumerate(lines) if not 4 <= len(line) <= len(LETTERS) + 2), None)
    if wrong is not None:
        raise InputError(f"{path}: row {wrong + 1} has {len(lines[wrong])} columns; expected {expected}")
    return [(line[0], _filled(line[1:-1]), line[-1]) for line in lines]


def _filled(choices: list[str]) -> list[str]:
    """Without the empty columns at the end, which a question of fewer choices than others has."""
    while choices and not choices[-1].strip():
        choices = choices[:-1]
    return choices


def _row(number: int, question: Any, choices: Any, answer: Any, path: object) -> dict[str, Any]:
    """A question, checked."""
    texts = [question, *(choices if isinstance(choices, list | tuple) else [])]
    plain = all(isinstance(t, str) and t.strip() and t.encode(errors="ignore").decode() == t for t in texts)
    if not 3 <= len(texts) <= len(LETTERS) + 1 or not plain:
        expected = f"expected a question and 2 to {len(LETTERS)} choices, all texts in UTF-8, none of them blank"
        raise InputError(f"{path}: row {number}: {expected}, found {texts!r:.120}")
    return {"question": question, "choices": list(choices), "answer": _answer(answer, len(choices), path)}


def _answer(value: Any, count: int, path: object) -> int:
    text, letters = str(value).strip(), LETTERS[:count]
    possible = (*letters, *map(str, range(count)))
    if text not in possible:
        raise InputError(f"{path}: answer {value!r:.40}; expected 0-{count - 1} or A-{letters[-1]}")
    return possible.index(text) % count


def _hub(config: QuestionsConfig, subject: str, split: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    with hub() as away:
        try:
            table = load_dataset(config.hub_id, subject, revision=config.revision, split=split)
        except Exception as error:  # the hub's client raises a different class for each way of being out of reach
            why = f"{config.hub_id} could not be fetched from the hub ({away or type(error).__name__})"
            how = "give questions.path=<folder with <subject>_test.csv>, or use questions=continuation"
            raise InputError(f"questions={config.name}: {why}; {how}") from error
    return [
        _row(number, row["question"], row["choices"], row["answer"], config.hub_id)
        for number, row in enumerate(table, start=1)
    ]
