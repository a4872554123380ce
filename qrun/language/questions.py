"""Multiple-choice questions with four answers.

continuation   which of four passages continues this text? Built by seed from the held-out part of `pydoc`: needs no
               network
mmlu           Massive Multitask Language Understanding (arXiv:2009.03300): hub, or a folder or file of CSV or parquet
"""

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrun.config.schema import DataConfig, QuestionsConfig
from qrun.errors import InputError
from qrun.language import corpus
from qrun.language.corpus import text_digest

LETTERS = "ABCD"
COLUMNS = ("question", "choices", "answer")


@dataclass(frozen=True)
class Question:
    """`prompt` is fed, `choices` are scored after it; `answer` is the index of the right one."""

    name: str  # subject and index
    text: str
    prompt: str
    choices: tuple[str, ...]
    shown: tuple[str, ...]  # the answers as a reader sees them
    answer: int
    reported: str = ""  # what the paper says about it


@dataclass(frozen=True)
class QuestionSet:
    """Questions, where they came from, and a digest of everything that is fed and scored."""

    name: str
    questions: list[Question]
    source: str

    @property
    def digest(self) -> str:
        return text_digest(f"{q.prompt}\0{q.choices}\0{q.answer}" for q in self.questions)


def load(config: QuestionsConfig, seed: int) -> QuestionSet:
    """Read or build the set.

    Raises InputError for missing files, wrong columns, an answer out of range and an empty set.
    """
    questions, source = (
        (_continuation(config, seed), "pydoc, test split") if config.source == "continuation" else _mmlu(config)
    )
    questions = questions[: config.limit]
    if not questions:
        raise InputError(f"questions={config.name}: no questions there")
    return QuestionSet(config.name, questions, source)


def _continuation(config: QuestionsConfig, seed: int) -> list[Question]:
    """Passages start at a word; wrong ones come from other documents, so style alone does not decide."""
    documents = [" ".join(d.split()) for d in corpus.load(DataConfig(name="pydoc", source="pydoc")).splits["test"]]
    need = config.context + 2 * config.characters
    documents = [d for d in documents if len(d) > need]
    if len(documents) < 4:
        raise InputError(f"questions.context={config.context}: fewer than four held-out documents are that long")
    rng = random.Random(seed)

    def cut(document: str, before: int) -> tuple[str, str]:
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
        shown = tuple(passages[k].strip() for k in order)
        found.append(
            Question(
                f"continuation {index}", context, context, tuple(passages[k] for k in order), shown, order.index(0)
            )
        )
    return found


def _mmlu(config: QuestionsConfig) -> tuple[list[Question], str]:
    subjects = config.subjects
    if config.path is not None:
        root, source = Path(config.path).expanduser(), str(Path(config.path).expanduser().resolve())
        if not root.exists():
            raise InputError(f"questions.path={root}: no such file or folder")
        read = {
            "test": lambda subject: _local(root, subject, "test"),
            "dev": lambda subject: _local(root, subject, "dev"),
        }
        if not subjects:
            files = [root] if root.is_file() else sorted([*root.rglob("*_test.csv"), *root.rglob("*test*.parquet")])
            subjects = [p.stem.removesuffix("_test") if p.suffix == ".csv" else p.parent.name for p in files]
    else:
        source = f"{config.hub_id} at {config.revision}"
        read = {split: (lambda subject, split=split: _hub(config, subject, split)) for split in ("test", "dev")}  # type: ignore[misc]
        subjects = subjects or ["all"]
    if not subjects:
        raise InputError(f"questions.path={config.path}: no <subject>_test.csv and no parquet file there")
    found = []
    for place, subject in enumerate(subjects):
        rows = read["test"](subject)
        examples = read["dev"](subject)[: config.examples] if config.examples else []
        topic = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
        head += "".join(f"{_block(row)} {LETTERS[row['answer']]}\n\n" for row in examples)
        chosen = [config.pick[place]] if config.pick else range(len(rows))
        for index in chosen:
            if index >= len(rows):
                raise InputError(f"questions.pick={config.pick}: {subject} has {len(rows)} questions")
            row = rows[index]
            reported = config.reported[place] if config.reported else ""
            letters = tuple(f" {letter}" for letter in LETTERS)
            found.append(
                Question(
                    f"{subject} {index}",
                    row["question"],
                    head + _block(row),
                    letters,
                    tuple(row["choices"]),
                    row["answer"],
                    reported,
                )
            )
    return found, source


def _block(row: dict[str, Any]) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{choices}\nAnswer:"


def _local(root: Path, subject: str, split: str) -> list[dict[str, Any]]:
    named = (
        [root]
        if root.is_file()
        else [*sorted(root.rglob(f"{subject}_{split}.csv")), *sorted(root.rglob(f"{subject}/{split}*.parquet"))]
    )
    if not named:
        raise InputError(f"questions.path={root}: no {subject}_{split}.csv and no {subject}/{split}*.parquet there")
    path = named[0]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        missing = [c for c in COLUMNS if c not in table.column_names]
        if missing:
            raise InputError(
                f"{path}: no column {missing[0]}; expected question, choices, answer, found "
                f"{', '.join(table.column_names)}"
            )
        rows = [(r["question"], list(r["choices"]), r["answer"]) for r in table.to_pylist()]
    else:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                lines = list(csv.reader(file))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
        if lines and lines[0][:1] == ["question"]:
            lines = lines[1:]  # with a header, else the original files without one
        wrong = next((n for n, line in enumerate(lines) if len(line) != 6), None)
        if wrong is not None:
            raise InputError(
                f"{path}: row {wrong + 1} has {len(lines[wrong])} columns; expected question, four choices, "
                f"answer (0-3 or A-D)"
            )
        rows = [(line[0], line[1:5], line[5]) for line in lines]
    return [{"question": q, "choices": c, "answer": _answer(a, path)} for q, c, a in rows]


def _answer(value: Any, path: object) -> int:
    text = str(value).strip()
    index = LETTERS.find(text) if text in LETTERS and text else int(text) if text.isdigit() else -1
    if not 0 <= index < 4:
        raise InputError(f"{path}: answer {value!r}; expected 0-3 or A-D")
    return index


def _hub(config: QuestionsConfig, subject: str, split: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    try:
        table = load_dataset(config.hub_id, subject, revision=config.revision, split=split)
    except Exception as error:  # the hub's client raises a different class for each way of being out of reach
        raise InputError(
            f"questions={config.name}: {config.hub_id} could not be fetched from the hub ({type(error).__name__}); "
            "give questions.path=<folder with <subject>_test.csv>, or use questions=continuation"
        ) from error
    return [
        {"question": row["question"], "choices": list(row["choices"]), "answer": _answer(row["answer"], config.hub_id)}
        for row in table
    ]
