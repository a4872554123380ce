"""From `key=value` words to a checked config: Typer owns the verbs, Hydra's compose owns the words after them.

    compose("train", ["model=smollm2", "adapter.dim=8"]) -> TrainConfig

Only Hydra and OmegaConf are imported, so that a wrong word is answered before any heavy package loads.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qrun.config.verbs import VERBS, RunConfig
from qrun.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()
TREE = _PACKAGE.parent / "configs" if _CHECKOUT else _PACKAGE / "configs"  # always of the tree this very code is in


def compose_tree(verb: str, words: list[str]) -> DictConfig:
    """Hydra's composed config for a verb, typed by the schema but not yet range-checked.

    Raises InputError in one line.
    """
    for word in words:
        _check_word(word)
    store = ConfigStore.instance()
    for name, schema in VERBS.items():
        store.store(name=f"{name}_schema", node=schema)
    try:
        with initialize_config_dir(str(TREE), version_base="1.3"):
            return hydra_compose(config_name=verb, overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, verb)) from error


def compose(verb: str, words: list[str]) -> Any:
    """The verb's dataclass, every value checked."""
    return to_schema(compose_tree(verb, words))


def to_schema(tree: DictConfig) -> Any:
    try:
        return OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(_one_line(error, "")) from error


def plain(config: Any) -> dict[str, Any]:
    """Nested plain values, enums as text: what is stored, hashed and printed."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'adapter': {'dim': 4}} -> {'adapter.dim': 4}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def config_hash(config: Any) -> str:
    """8 hex digits over everything that can change the result: not where it is stored or what it is called."""
    values = {k: v for k, v in plain(config).items() if k not in ("results", "name")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def options() -> dict[str, dict[str, str]]:
    """Group -> option -> first comment line of its file, read from the installed config tree."""
    groups: dict[str, dict[str, str]] = {}
    for folder in sorted(TREE.iterdir()):
        if folder.is_dir() and not folder.name.startswith(("_", ".")):
            found = {
                f.name[:-5]: _headline(f)
                for f in sorted(folder.iterdir(), key=lambda f: f.name)
                if f.name.endswith(".yaml")
            }
            if found:
                groups[folder.name] = found
    return groups


def _headline(file: Path) -> str:
    first = next(
        (
            line
            for line in file.read_text(encoding="utf-8").splitlines()
            if line.startswith("#") and "@package" not in line
        ),
        "",
    )
    return first.lstrip("# ").rstrip()


def _check_word(word: str) -> None:
    if word.startswith(("+", "~")):
        raise InputError(
            f"{word}: keys cannot be added or removed; `qrun config` lists what exists, and key=value sets it"
        )
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise InputError(f"{word}: expected key=value, for example adapter.dim=8 (`qrun config` lists the groups)")
    depth, quote = 0, ""
    for char in value:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0 and key in options():
            raise InputError(
                f"{word}: numbers of different {key} options are not compared in one study; give one, and run "
                f"the command once for each"
            )
        elif char == "," and depth == 0:
            raise InputError(f"{word}: one run takes one value per key; for a list write {key}=[{value}]")
    if re.match(r"^(range|interval|choice|glob)\(", value):
        raise InputError(f"{word}: one run takes one value per key, not a grid")
    if depth or quote:
        raise InputError(f"{word}: unbalanced brackets or quotes in the value")


def _one_line(error: BaseException, verb: str) -> str:
    """Hydra's nested, multi-line errors as one line that names the key, what was given and what is possible."""
    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__).split()) if error.__cause__ else ""
    if match := re.search(r"Could not find '([\w@]+)/(\S+?)'", text):
        group, given = match.groups()
        return f"{group}={given}: no such option; {group} has {', '.join(options().get(group, {}))}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        return f"{key}: no such key for this command; {_near(key, verb)}"
    if match := re.search(r"In '[^']+': Could not override '([^'@]+)", text):
        return f"{match.group(1)}: no such group; groups are {', '.join(options())}"
    if match := re.search(r"Error merging override (\S+)", text):
        return f"{match.group(1)}: {_strip(cause or text)}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match.group(1)}: a value is needed; set {match.group(1)}=..."
    return _strip(text) + (f" ({_strip(cause)})" if cause and cause not in text else "")


def _strip(text: str) -> str:
    return re.split(r"\s(?:full_key|object_type|reference_type|Set the environment)", text)[0].strip()


def _near(key: str, verb: str) -> str:
    import difflib

    from qrun.config.verbs import leaf_keys

    keys = leaf_keys(VERBS.get(verb, RunConfig)) + list(options())
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else "`--cfg` prints every key and value"
