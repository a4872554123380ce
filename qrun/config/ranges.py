"""How a value outside its range is told: InputError with the key, what was given and what is possible."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from omegaconf import MISSING

from qrun.errors import InputError


@contextmanager
def because_of(key: str, given: object) -> Iterator[None]:
    """An InputError inside, about what a value of `key` led to, names that key too."""
    try:
        yield
    except InputError as error:
        raise error if key in str(error) else InputError(f"{key}={given}: {error}") from None


def require(condition: bool, key: str, given: object, possible: str) -> None:
    """Raise InputError with the key, what was given and what is possible."""
    if not condition:
        raise InputError(f"{key}={given}: {possible}")


def need(config: object, key: str, holds: bool, possible: str) -> None:
    """`require` for a field of a group's dataclass, `key` being `group.field`."""
    given = getattr(config, key.rpartition(".")[2])
    given = given.value if isinstance(given, Enum) else "true" if given is True else given
    require(holds, key, given, possible)


def at_least(config: object, least: int, *keys: str, null: str = "") -> None:
    """`need` for finite numbers of `least` or more; `null` says what null means where it is allowed."""
    for key in keys:
        value = getattr(config, key.rpartition(".")[2])
        need(config, key, bool(null) if value is None else least <= value < math.inf, f"give {least} or more{null}")


def check_seeds(key: str, *seeds: int) -> None:
    """Numbers that every generator takes."""
    for seed in seeds:
        require(0 <= seed < 2**32, key, seed, "give a number from 0 to 2^32 - 1")


def require_place(results: str) -> None:
    """The results folder is a part of the address of MLflow's database."""
    free = bool(results) and not set("?%") & set(results)
    require(free, "results", results, "an address of MLflow gives '?' and '%' a meaning; choose a path without them")


def require_name(key: str, given: str | None) -> None:
    """A name becomes a folder and a part of run names, so it must not lead to another place. Unset ones pass."""
    if given is not None and given != MISSING:
        plain = re.fullmatch(r"[A-Za-z0-9._-]{1,120}", given) is not None and given not in (".", "..")
        shown = given if given.isprintable() else repr(given)
        require(plain, key, shown, "use 1 to 120 letters a-z and A-Z, digits, '.', '_' or '-', but not '.' or '..'")
