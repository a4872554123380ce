"""From `key=value` words to a checked config: Typer owns the verbs, Hydra's compose owns the words after them.

    compose("train", ["model=smollm2", "adapter.dim=8"]) -> TrainConfig

Only Hydra and OmegaConf are imported, so that a wrong word is answered before any heavy package loads.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from omegaconf.resolvers import oc
from yaml import YAMLError

from qrun.config import tree, words
from qrun.config.verbs import VERBS
from qrun.errors import InputError
from qrun.foreign import said

PLACES = ("results", "name", "tracking", "cache")  # where things are, which is nobody else's business
# of Hydra on a user's words
FAILURES = (HydraException, OmegaConfBaseException, YAMLError, AssertionError, OSError, ValueError)
NOWHERE = (ConfigKeyError, ConfigAttributeError)


def compose(verb: str, typed: list[str], schema: type | None = None) -> Any:
    """The verb's dataclass, every value checked. A study brings its own schema. Raises InputError in one line."""
    found = [words.read(word) for word in typed]
    _know(verb, schema or VERBS[verb])
    for word in found:
        _check_option(word)
    composed, filled = None, {}
    try:
        composed = _composed(verb, found)
        filled = _check_texts(composed)
        for key, path in tree.homes(OmegaConf.to_container(composed)).items():  # type: ignore[arg-type]  # a mapping
            OmegaConf.update(composed, key, path)
        made = OmegaConf.to_object(composed)
        if filled:
            _check_filled(made, filled)
        return made
    except InputError:
        raise
    except FAILURES as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if filled and not getattr(error.__cause__ or error, "full_key", None):  # read only as the dataclass is made
            raise InputError(_other_type(filled, error)) from error
        raise InputError(_told(error, verb, found, _guilty(verb, found) if composed is None else None)) from error
    except (AttributeError, TypeError) as error:
        mappings = [word.input_line for word in found if isinstance(word.value(), dict)]
        if composed is None and mappings:  # OmegaConf merges none into a group that is null
            raise InputError(f"{said(mappings[0])}: takes no mapping here; give its keys one by one") from error
        if not filled:
            raise
        raise InputError(_other_type(filled, error)) from error  # a list, whose type OmegaConf does not look at


def _check_texts(composed: Any) -> dict[str, str]:
    """Own files, like words, fill in values of this config alone, no text of a config is a secret, no list stands in
    a list. Returns the texts that are filled in, by their keys."""
    values: Any = OmegaConf.to_container(composed, resolve=False)
    for key, value in tree.flatten(values).items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, list):  # OmegaConf looks at no type inside a list
                raise InputError(f"{key}={said(value)}: a list in a list; give plain values")
            words.check_text(key, str(item))
    return {key: text for key, text in tree.flatten(values).items() if isinstance(text, str) and "${" in text}


def _check_filled(made: Any, filled: dict[str, str]) -> None:
    """What is filled in for a group has the group's type, which OmegaConf looks at only on the way back."""
    try:
        OmegaConf.structured(made)
    except ValidationError as error:
        raise InputError(_other_type(filled, error)) from error


def _other_type(filled: dict[str, str], error: Exception) -> str:
    key, text = next(iter(filled.items()))
    return f"{key}={text}: fills in a value of another type ({str(error).splitlines()[0]})"


@contextmanager
def _no_environment() -> Iterator[None]:
    """Hydra resolves the names in lists of defaults while it composes: not from the environment."""
    OmegaConf.clear_resolver("oc.env")
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


@cache
def _know(verb: str, schema: type) -> None:
    """Tell Hydra the schema of a verb."""
    ConfigStore.instance().store(name=f"{verb}_schema", node=schema)


def _composed(verb: str, found: Sequence[Override]) -> Any:
    """Hydra's tree, with own folders on its search path, of options that one folder has."""
    own = [words.quoted(str(folder)) for folder in tree.folders()]
    lines = [*map(words.typed, found), *([f"hydra.searchpath=[{','.join(own)}]"] if own else [])]
    with _no_environment(), initialize_config_dir(str(tree.TREE), version_base="1.3"):
        composed = hydra_compose(config_name=verb, overrides=lines, return_hydra_config=True)
    known = tree.files()
    for place, name in composed.hydra.runtime.choices.items():
        if name is not None and (group := place.partition("@")[0]) in known:
            tree.take(group, name)
    with open_dict(composed):
        del composed["hydra"]
    return composed


def _check_option(word: Override) -> None:
    """An option that there is; `null` empties a group in a place (data@home=null)."""
    group, value = word.key_or_group, word.value()
    known = tree.files()
    if group in known and not (value is None and word.package) and value not in list(known[group]):
        raise InputError(f"{word.input_line}: no such option; {group} has {', '.join(known[group])}")


def _told(error: BaseException, verb: str, found: Sequence[Override], word: Override | None) -> str:
    """Hydra's nested, multi-line errors as one line that names the key, what was given and what is possible; `word` is
    the one that does not compose."""
    cause = error.__cause__ or error
    key = str(getattr(cause, "full_key", None) or (word and word.get_key_element()) or "")
    what = " ".join(line.strip() for line in str(cause).splitlines() if line[:1].strip())  # without OmegaConf's details
    if word is not None and word.key_or_group == "experiment":
        own = tree.command_of(str(word.value()))
        if own is not None and own != tree.spoken(verb):
            return f"{word.input_line}: is for `qrun {own}`, not for `qrun {tree.spoken(verb)}`"
        key = f"{word.input_line}: {key if getattr(cause, 'full_key', None) else ''}".rstrip(": ")
    if isinstance(cause, MissingConfigException):
        return f"{key}: no file {cause.missing_cfg_file}; possible: {', '.join(cause.options or [])}"
    if isinstance(cause, MissingMandatoryValue):
        return f"{key}: a value is needed; set {key}=..."
    if word is not None and (place := word.get_key_element().partition(".")[0]).partition("@")[0] in tree.files():
        having = tree.commands_with(place)
        if tree.spoken(verb) not in having:
            return f"{place}: this command has no {place}; these have: {', '.join(having) or 'none'}"
    if isinstance(cause, NOWHERE):
        key = word.get_key_element() if word is not None and word.key_or_group != "experiment" else key
        return f"{key}: no such key for this command; {_near(key, verb)}"
    if what.startswith("Unexpected type for root: NoneType"):
        return f"{key}: {key.rpartition('.')[0]} is null here, and has no keys"
    below = [word.get_key_element() for word in found if word.get_key_element().startswith(f"{key}.")]
    return f"{' or '.join(below) or key}: {what}" if key else what  # a group that could not be made is a word's fault


def _guilty(verb: str, found: Sequence[Override]) -> Override | None:
    """The first word without which Hydra composes; `found` as a whole does not."""
    for count in range(1, len(found)):
        try:
            _composed(verb, found[:count])
        except FAILURES:
            return found[count - 1]
    return found[-1] if found else None


def _near(key: str, verb: str) -> str:
    keys = [*tree.words_of(verb.removeprefix("sweep_")), *tree.files()]
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else "`--cfg job` prints every key and value"


def plain(config: Any) -> dict[str, Any]:
    """Nested plain values, enums as text: what is stored, hashed and printed."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def to_yaml(config: Any, without: tuple[str, ...] = ()) -> str:
    return OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in plain(config).items() if k not in without}))


def from_yaml(text: str, schema: type) -> Any:
    """The inverse of `to_yaml`: the checked dataclass of a record. Raises InputError in one line for a text that is
    none of it."""
    if "${" in text:  # a record has values, and no names of the environment's
        raise InputError("config.yaml: has ${...}; a record has plain values only")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(text)))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"config.yaml: not a config of this version ({said(error)})") from error


def config_hash(config: Any) -> str:
    """8 hex digits over everything that can change the result: not its place, its name or a cache."""
    values = {k: v for k, v in plain(config).items() if k not in PLACES}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
