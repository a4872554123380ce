"""From `key=value` words to a checked config: Typer owns the verbs, Hydra's compose owns the words after them.

    compose("train", ["model=smollm2", "adapter.dim=8"]) -> TrainConfig

Only Hydra and OmegaConf are imported, so that a wrong word is answered before any heavy package loads.
"""

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qrun.config.schema import LauncherConfig
from qrun.config.verbs import VERBS, PerplexityConfig, RunConfig, TrainConfig, leaf_keys
from qrun.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()
TREE = _PACKAGE.parent / "configs" if _CHECKOUT else _PACKAGE / "configs"  # always of the tree this very code is in

T = TypeVar("T")
OPEN = ("adapter.options.", "device.options.", "study.control_lr.")  # keys below these need no default in a file


def compose(verb: str, words: list[str], schema: type | None = None) -> Any:
    """The verb's dataclass, every value checked. A study brings its own schema. Raises InputError in one line."""
    for word in words:
        _check_word(word)
    store = ConfigStore.instance()
    for name, node in {**VERBS, **({verb: schema} if schema else {})}.items():
        store.store(name=f"{name}_schema", node=node)
    try:
        with initialize_config_dir(str(TREE), version_base="1.3"):
            tree = hydra_compose(config_name=verb, overrides=[_override(word) for word in words])
        return OmegaConf.to_object(tree)
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(_one_line(error, verb)) from error


def _override(word: str) -> str:
    """A word as Hydra takes it: open keys are added, and a group in a place is emptied (data@home=null)."""
    key, _, value = word.partition("=")
    group, _, place = key.partition("@")
    if value == "null" and place:
        return f"{place}=null"
    if group in options() and value.strip("'\"") not in options()[group]:
        raise InputError(f"{word}: no such option; {group} has {', '.join(options()[group])}")
    return "++" + word if word.startswith(OPEN) else word


def plain(config: Any) -> dict[str, Any]:
    """Nested plain values, enums as text: what is stored, hashed and printed."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def to_yaml(config: Any, without: tuple[str, ...] = ()) -> str:
    return OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in plain(config).items() if k not in without}))


def from_yaml(text: str) -> dict[str, Any]:
    """What `to_yaml` wrote, as plain values; numbers such as 1e-05 stay numbers. Raises InputError for another text."""
    try:
        found = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise InputError(f"not the YAML of a config ({' '.join(str(error).split())[:120]})") from error
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'adapter': {'dim': 4}} -> {'adapter.dim': 4}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def config_hash(config: Any) -> str:
    """8 hex digits over everything that can change the result: not its place, its name or a cache."""
    values = {k: v for k, v in plain(config).items() if k not in ("results", "name", "cache")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def option(group: str, name: str, schema: type[T]) -> T:
    """One option of a group, checked. Raises InputError naming the possible ones."""
    file = TREE / group / f"{name}.yaml"
    if not name.isidentifier() or not file.is_file():
        raise InputError(f"{group}={name}: no such option; {group} has {', '.join(options()[group])}")
    return schema(**from_yaml(file.read_text(encoding="utf-8")))


def options() -> dict[str, dict[str, str]]:
    """Group -> option -> first comment line of its file, read from the installed config tree."""
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(TREE.glob("*/*.yaml")):
        if not file.parent.name.startswith(("_", ".")):
            groups.setdefault(file.parent.name, {})[file.stem] = _headline(file)
    return groups


def words_of(command: str) -> list[str]:
    """Groups and keys that a command takes; a study's own from its YAML, since its module is heavy."""
    file = next((f for f in (TREE / f"sweep_{command}.yaml", TREE / f"{command}.yaml") if f.is_file()), None)
    if file is None:
        return [*options(), *leaf_keys()]
    own = from_yaml(file.read_text(encoding="utf-8"))
    groups = {group: name for entry in own.pop("defaults") if isinstance(entry, dict) for group, name in entry.items()}
    if command in VERBS:
        return sorted({*groups, *leaf_keys(VERBS[command])})
    known = [*leaf_keys(PerplexityConfig), *leaf_keys(TrainConfig), *leaf_keys(LauncherConfig, "launcher.")]
    return sorted({*groups, *flatten(own), *(key for key in known if key.partition(".")[0] in groups)})


def commands_with(group: str) -> list[str]:
    """The commands that take a group."""
    found = [file.stem for file in sorted(TREE.glob("*.yaml")) if f"  - {group}: " in file.read_text(encoding="utf-8")]
    evaluations = ("perplexity", "questions")
    return [f"eval {name}" if name in evaluations else name.replace("sweep_", "sweep ") for name in found]


def _headline(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (line for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "").lstrip("# ").rstrip()


def _check_word(word: str) -> None:
    if word.startswith(("+", "~")):
        possible = "`qrun config` lists what exists, and key=value sets it"
        raise InputError(f"{word}: keys cannot be added or removed; {possible}")
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise InputError(f"{word}: expected key=value, for example adapter.dim=8 (`qrun config` lists the groups)")
    if re.search(r"\$\{[^}]*(:|\$\{)", value):  # never resolved, so that no token of the environment enters a config
        raise InputError(f"{key}: only values of this config are filled in, such as ${{seed}}; no resolvers")
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
            why = f"numbers of different {key} options are not compared in one study"
            raise InputError(f"{word}: {why}; give one, and run the command once for each")
        elif char == "," and depth == 0:
            study = "; several are a study: qrun sweep dim study.dims=[...]" if key == "adapter.dim" else ""
            raise InputError(f"{word}: one run takes one value per key; for a list write {key}=[{value}]{study}")
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
        if key in options():
            return f"{key}: this command has no {key}; these have: {', '.join(commands_with(key))}"
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
    keys = leaf_keys(VERBS.get(verb, RunConfig)) + list(options())
    close = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else "`--cfg` prints every key and value"
