"""The words of a command line by Hydra's own grammar: `key=value`, and with -m a grid, `adapter.dim=2,4 seed=range(3)`.

A path needs no quotes: `data.path=/tmp/a b(1)#é.txt` is taken as the shell hands it over.
"""

import json
import re
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    Quote,
    QuotedString,
)
from hydra.errors import HydraException

from qrun.config.tree import PATHS, files
from qrun.errors import InputError, redacted

OPEN = ("adapter.options.", "device.options.", "study.control_lr.")  # keys below these need no default in a file
EXPECTED = "expected key=value, for example adapter.dim=8 (`qrun config` lists the groups)"
LONGEST_VALUE = 4096
_parser = OverridesParser.create()


def read(word: str, grid: bool = False) -> Override:
    """A word as Hydra reads it; a grid's may have several values. Raises InputError for what is not taken."""
    key, equals, value = word.partition("=")
    if not word.isprintable():
        raise InputError(f"{word!r}: a control character or broken text; a word is printable characters in UTF-8")
    check_text(key, value)
    if key.partition(".")[0].partition("/")[0] == "hydra":
        instead = "--config-dir DIR adds own files, -m runs a grid, results= says where runs go"
        raise InputError(f"{key}: Hydra's own settings are not taken; {instead}")
    try:
        found = _parser.parse_override(_quoted(key, value, grid) if equals else word)
    except HydraException as error:
        if not equals:
            raise InputError(f"{word}: {EXPECTED}") from error
        why = str(error).splitlines()[0]
        how = f"close brackets and quotes, or quote it all, {key}=\"'...'\""
        raise InputError(f"{word}: not a value of Hydra's grammar ({why}); {how}") from error
    if not found.key_or_group:
        raise InputError(f"{word}: {EXPECTED}")
    if found.type is not OverrideType.CHANGE:
        possible = "`qrun config` lists what exists, and key=value sets it"
        raise InputError(f"{word}: keys cannot be added or removed; {possible}")
    if found.is_sweep_override() and not grid:
        raise InputError(_several(found, value))
    if isinstance(found.value(), IntervalSweep | Glob):
        raise InputError(f"{word}: a grid takes values, choice(...) and range(...)")
    return found


def check_text(key: str, text: str) -> None:
    """Raise InputError for a text that would bring a secret into a config, its hash and its record."""
    if re.search(r"\$\{[^}]*(:|\$\{)", text):  # nothing is ever read from the environment
        raise InputError(f"{key}: only values of this config are filled in, such as ${{seed}}; no resolvers")
    if len(text) > LONGEST_VALUE:
        raise InputError(f"{key}: a text of {len(text):,} characters; {LONGEST_VALUE:,} at most")
    if key != "tracking.uri" and redacted(text) != text:
        raise InputError(f"{key}: looks like a token or password, which no config may hold; set it in the environment")


def typed(word: Override) -> str:
    """A word as `compose` takes it: open keys are added, and a group in a place is emptied (data@home=null)."""
    line = word.input_line or ""
    if word.package and word.value() is None:
        return f"{word.package}=null"
    return "++" + line if word.key_or_group.startswith(OPEN) else line


def points(words: list[str]) -> tuple[list[str], list[list[str]]]:
    """The words of a grid with one value, and those of each of its points, in the order of Hydra's own sweeper."""
    found = [read(word, grid=True) for word in words]
    fixed = [word.input_line or "" for word in found if not word.is_sweep_override()]
    axes = [word for word in found if word.is_sweep_override()]
    values = [[f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()] for word in axes]
    return fixed, [list(point) for point in product(*values)]


def values(words: list[str]) -> dict[str, str | int | float | None]:
    """What words set, a number or a text; lists as they are typed."""
    found: dict[str, str | int | float | None] = {}
    for word in map(read, words):
        value = word.value()
        if value is not None and not isinstance(value, str | int | float):
            value = word.get_value_element_as_str()
        found[word.get_key_element()] = value
    return found


def _quoted(key: str, value: str, grid: bool) -> str:
    """The word, its value quoted for Hydra where it is a path that is not quoted, empty or null."""
    last = key.rpartition(".")[2]
    plain = value in ("", "null") or (value[0] in "'\"" and value[-1] == value[0])
    if last not in PATHS or plain or (grid and _is_grid(f"{key}={value}")):
        return f"{key}={value}"
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """A text as Hydra's grammar takes it, whatever characters it has."""
    return str(QuotedString(value, Quote.single).with_quotes())


def spelled(value: object) -> str:
    """A Python value as it is typed after `key=`."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spelled, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool | int | float) else quoted(str(value))


def _is_grid(word: str) -> bool:
    try:
        return bool(_parser.parse_override(word).is_sweep_override())
    except HydraException:
        return False


def _several(word: Override, value: str) -> str:
    key, group = word.get_key_element(), word.key_or_group
    if group in files():
        return f"{key}={value}: one run takes one {group}; `qrun train -m` and `qrun eval perplexity -m` run each"
    study = "; several are a study: qrun sweep dim study.dims=[...]" if key == "adapter.dim" else ""
    simple = isinstance(word.value(), ChoiceSweep) and word.value().simple_form  # type: ignore[union-attr]
    listed = f"for a list write {key}=[{value}]" if simple else ""
    ways = [way for way in ("-m runs each (`qrun train`, `qrun eval perplexity`)", listed) if way]
    return f"{key}={value}: one run takes one value per key; {'; '.join(ways)}{study}"
