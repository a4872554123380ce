"""What others wrote: JSON and headers of safetensors, of limited size and stated types; each fault is one short line.

read_json(path)                 a JSON object
typed(Kind, values, where)      the same, as a TypedDict or dataclass: every value has its type, nothing is converted
read_header(path, what, types)  the tensors of a safetensors file: types, shapes, places; no value is read
brief(value)                    a value as an error shows it
"""

import json
import os
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from qrun.errors import InputError

JSON_BYTES, HEADER_BYTES = 1 << 27, 100_000_000  # a tokenizer.json of 256,000 words has 33 MB; safetensors' own limit
DEEPEST = 50  # objects and lists inside each other: what walks a value calls itself for each
SHOWN = 60  # characters of a value in an error
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}  # of the types that weights have
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type in safetensors' words, and where its bytes are."""

    path: Path
    dtype: str
    shape: list[int]
    start: int
    size: int


def brief(value: object) -> str:
    """A value on one line, cut to SHOWN characters."""
    text = ascii(value[: 4 * SHOWN]) if isinstance(value, str) else ascii(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def named(name: str) -> str:
    """A name as it is, or `brief` where it is long or has odd characters."""
    return name if re.fullmatch(rf"[A-Za-z0-9_.-]{{1,{SHOWN}}}", name) else brief(name)


def said(error: object) -> str:
    """What an error of another package says, on one line and not at length."""
    return " ".join(str(error).split())[:160]


def read_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """A JSON object of at most so many bytes, DEEPEST deep. Raises InputError that says what is wrong with the file."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if (size := path.stat().st_size) > most:
            raise InputError(f"{path}: {size:,} bytes of JSON; at most {most:,} are read")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({said(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a JSON object")
    level: list[Any] = [values]
    for _ in range(DEEPEST):
        items = (item for value in level for item in (value.values() if isinstance(value, dict) else value))
        level = [item for item in items if isinstance(item, dict | list)]
    if level:
        raise InputError(f"{path}: nested more than {DEEPEST} deep")
    return values


def typed(kind: type[Kind], values: Mapping[str, Any] | str, where: str | Path) -> Kind:
    """`values`, or their JSON, as the TypedDict `kind`, checked strictly: true is no number and "false" no truth value.
    Only from JSON are there dataclasses, and keys that are numbers. Keys that it does not name are left out, or kept
    where it says so. Raises InputError with the first key that is wrong, what it has and what it needs."""
    from pydantic import TypeAdapter, ValidationError

    try:
        known = TypeAdapter(kind)
        if isinstance(values, str):
            return known.validate_json(values, strict=True)
        return known.validate_python(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part)[:SHOWN] for part in first["loc"])
        if first["type"] == "missing":
            raise InputError(f"{where}: no {key} there") from error
        need = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise InputError(f"{where}: {key}={brief(first['input'])} {need}"[: len(str(where)) + 200]) from error


def read_header(path: Path, what: str = "", types: Collection[str] = BITS) -> dict[str, Stored]:
    """Tensors by the header of a safetensors file: its length (8 bytes), JSON, then the bytes. `what` begins every
    error, else the path does. Raises InputError for a file that is cut or inconsistent, and for types that are none of
    `types`, which are some of BITS."""
    what = what or f"{path}:"
    incomplete = f"{what} not a complete safetensors file"
    if not os.path.isfile(path):
        raise InputError(f"{what} missing")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - 8
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, HEADER_BYTES):
                raise InputError(incomplete)
            header = dict(json.loads(file.read(length)))
        header.pop("__metadata__", None)
        found = {
            str(name): Stored(
                path, str(entry["dtype"]), list(map(int, entry["shape"])), 8 + length + start, end - start
            )
            for name, entry in header.items()
            for start, end in [map(int, entry["data_offsets"])]
        }
    except (
        OSError,
        ValueError,
        LookupError,
        ArithmeticError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise InputError(incomplete) from error
    for name, tensor in found.items():
        if tensor.dtype not in types:
            raise InputError(f"{what} {named(name)} is of type {named(tensor.dtype)}; possible: {', '.join(types)}")
        inside = 8 + length <= tensor.start <= 8 + size - tensor.size
        if min(tensor.shape, default=0) < 0 or 8 * tensor.size != prod(tensor.shape) * BITS[tensor.dtype] or not inside:
            raise InputError(incomplete)
    return found
