"""Files of text as rows: which format a file has by its content, regular and of bounded size before it is read.

    read_rows(path, "data.path") -> Rows        JSON, JSON lines, CSV, parquet, or a running text in paragraphs or lines

Whatever is wrong with a file is an InputError of one line with its path, what was found and what is possible.
"""

import csv
import io
import json
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrun.errors import InputError

LARGEST = 2**31  # bytes of a file that is read into memory
COLUMN = "text"
EXPECTED = "expected a list of strings or of objects with a `text`, or an object of id -> text"


@dataclass(frozen=True)
class Rows:
    """Texts of a file, none of them blank; `running` where neighbours belong together; `form` as a reader names it."""

    texts: list[str]
    form: str
    running: bool = False

    @property
    def told(self) -> str:
        """What was read, for a reader: its form and its first words."""
        words = " ".join(self.texts[0][:200].split()[:5])[:60]
        return f"{self.form}, begins {words!r}"


def read_rows(path: Path, key: str) -> Rows:
    """The texts of a file. Raises InputError, also for a file without any."""
    content = read_bytes(path, key)
    if content[:4] == b"PAR1":
        rows = Rows(parquet_column(path, key), "parquet")
    else:
        rows = _from_text(path, key, decoded(content, path, key))
    for number, row in enumerate(rows.texts, start=1):
        if not _whole(row):
            raise InputError(f"{key}={path}: text {number} has a lone surrogate, which no UTF-8 text has; remove it")
    texts = [row for row in rows.texts if row.strip()]
    if not texts:
        raise InputError(f"{key}={path}: the text is empty ({rows.form})")
    return Rows(texts, rows.form, rows.running)


def regular(path: Path, key: str) -> Path:
    """The path of a regular file, links resolved, of LARGEST bytes at most; nothing is read."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode) or not stat.S_ISREG(found.st_mode):
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
            raise InputError(f"{key}={path}: {what}; give a regular file")
        if found.st_size > LARGEST:
            raise InputError(f"{key}={path}: {found.st_size / 2**30:.1f} GiB; {LARGEST / 2**30:.0f} GiB at most")
        return path
    except (OSError, ValueError) as error:
        raise InputError(f"{key}={path}: {getattr(error, 'strerror', None) or error}") from error


def read_bytes(path: Path, key: str) -> bytes:
    """The bytes of a regular file."""
    try:
        return regular(path, key).read_bytes()
    except OSError as error:
        raise InputError(f"{key}={path}: {error.strerror or error}") from error


def read_text(path: Path, key: str) -> str:
    """A UTF-8 text without a byte order mark, its lines ended by a newline."""
    return decoded(read_bytes(path, key), path, key)


def decoded(content: bytes, path: Path, key: str) -> str:
    """Bytes as text, as `read_text` says."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{key}={path}: not UTF-8 text (byte {error.start})") from error
    if "\0" in text:
        raise InputError(f"{key}={path}: not a text (a zero at character {text.index(chr(0))})")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parquet_rows(path: Path, key: str, columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a parquet file, of these columns."""
    import pyarrow.parquet as pq

    try:
        with regular(path, key).open("rb") as file:
            table = pq.ParquetFile(file)
            missing = [c for c in columns or () if c not in table.schema_arrow.names]
            if missing:
                has = ", ".join(map(str, table.schema_arrow.names[:20]))
                raise InputError(f"{key}={path}: no column {missing[0]}; its columns are {has}")
            rows: list[dict[str, Any]] = table.read(columns=None if columns is None else list(columns)).to_pylist()
            return rows
    except InputError:
        raise
    except Exception as error:  # pyarrow's errors share no base class
        raise InputError(f"{key}={path}: not a parquet file that can be read ({type(error).__name__})") from error


def parquet_column(path: Path, key: str, column: str = COLUMN) -> list[str]:
    """Texts of a column, empty where there is none."""
    values = [row[column] for row in parquet_rows(path, key, [column])]
    wrong = next((value for value in values if not isinstance(value, str | None)), None)
    if wrong is not None:
        raise InputError(f"{key}={path}: column {column} holds values of type {type(wrong).__name__}, not text")
    return [value or "" for value in values]


def csv_rows(text: str, path: Path, key: str, delimiter: str = ",") -> list[list[str]]:
    """Rows of a CSV text, of fields of any length."""
    csv.field_size_limit(LARGEST - 1)
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{key}={path}: not a CSV file ({error})") from error


def _from_text(path: Path, key: str, text: str) -> Rows:
    """By content; the suffix decides only what a broken file was meant to be."""
    start = text.lstrip()[:1]
    meant = path.suffix.lower()
    if meant in (".json", ".jsonl") or start in ("[", "{"):
        try:
            return _json(text, path, key)
        except (ValueError, RecursionError) as error:
            if meant in (".json", ".jsonl"):
                why = "nested too deeply" if isinstance(error, RecursionError) else error
                raise InputError(f"{key}={path}: {EXPECTED} ({why})") from error
    header = text.partition("\n")[0]
    delimiter = "\t" if "\t" in header else ","
    named = delimiter in header and COLUMN in (field.strip('"') for field in header.split(delimiter))
    if meant in (".csv", ".tsv") or named:
        return _table(csv_rows(text, path, key, delimiter), path, key)
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    if len(paragraphs) == 1 and "\n" in paragraphs[0]:
        return Rows(paragraphs[0].split("\n"), "lines of a text without blank lines", running=True)
    return Rows(paragraphs, "paragraphs", running=True)


def _lines(text: str) -> list[Any]:
    """JSON lines; not splitlines, because U+2028 may stand in a string."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def json_rows(path: Path, key: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines, each with these keys."""
    try:
        rows = _lines(read_text(path, key))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key}={path}: not JSON lines ({' '.join(str(error).split())[:80]})") from error
    for number, row in enumerate(rows, start=1):
        missing = [c for c in columns if not isinstance(row, dict) or c not in row]
        if missing:
            raise InputError(f"{key}={path}: row {number} has no {missing[0]}; give {', '.join(columns)}")
    return rows


def _json(text: str, path: Path, key: str) -> Rows:
    """A JSON document or JSON lines, whichever its suffix says first. Raises ValueError or RecursionError for what is
    neither."""
    forms: list[tuple[str, Callable[[str], Any]]] = [("JSON", json.loads), ("JSON lines", _lines)]
    first, other = reversed(forms) if path.suffix.lower() == ".jsonl" else forms
    try:
        form, values = first[0], first[1](text)
    except ValueError as error:
        try:
            form, values = other[0], other[1](text)
        except ValueError:
            raise error from None
    if isinstance(values, str) or (isinstance(values, Mapping) and isinstance(values.get(COLUMN), str)):
        values = [values]
    listed = list(values.values()) if isinstance(values, Mapping) else values
    if not isinstance(listed, list):
        raise InputError(f"{key}={path}: {EXPECTED}, found a {type(values).__name__}")
    texts: list[Any] = [item.get(COLUMN) if isinstance(item, Mapping) else item for item in listed]
    wrong = next((number for number, value in enumerate(texts) if not isinstance(value, str)), None)
    if wrong is not None:
        found = f"an object without a text `{COLUMN}`" if isinstance(listed[wrong], Mapping) else repr(listed[wrong])
        raise InputError(f"{key}={path}: {EXPECTED}, found {found[:80]} as item {wrong + 1}")
    return Rows(texts, form)


def _table(rows: list[list[str]], path: Path, key: str) -> Rows:
    """The column `text` of a CSV file with a header, or its only column."""
    header = rows[0] if rows else []
    if COLUMN not in header and len(header) != 1:
        raise InputError(f"{key}={path}: no column {COLUMN}; its columns are {', '.join(header[:20]) or 'none'}")
    at = header.index(COLUMN) if COLUMN in header else 0
    short = next((number for number, row in enumerate(rows, start=1) if row and len(row) != len(header)), None)
    if short is not None:
        raise InputError(f"{key}={path}: row {short} has {len(rows[short - 1])} columns, the header {len(header)}")
    return Rows([row[at] for row in rows[1:] if row], "CSV")


def _whole(text: str) -> bool:
    """Whether a text has no lone surrogates: JSON can spell them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
