"""The config files there are: the package's, and those of own folders that lie on Hydra's search path beside them.

An own folder has groups as the package's has: `mine/noise/lab.yaml` is `noise=lab`, `mine/experiment/first.yaml` is
`experiment=first`. Taken are `--config-dir DIR`, the environment's QRUN_CONFIG_DIR, and ./configs where one stands.
"""

import os
import re
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qrun.config.schema import LauncherConfig
from qrun.config.verbs import VERBS, PerplexityConfig, TrainConfig, leaf_keys
from qrun.errors import InputError
from qrun.files import at_home
from qrun.foreign import said

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = (_PACKAGE.parent / "pyproject.toml").is_file()
TREE = _PACKAGE.parent / "configs" if _CHECKOUT else _PACKAGE / "configs"  # always of the tree this very code is in
ENVIRONMENT = "QRUN_CONFIG_DIR"
PATHS = ("path", "results", "calibration", "include_path")  # last parts of keys that hold a path

T = TypeVar("T")
_chosen: list[str] = []  # --config-dir of this command
_used: dict[str, None] = {}  # own folders that this command took a file from


def use(folder: str | None) -> None:
    """Take `--config-dir` for this command."""
    _chosen[:] = [folder] if folder else []
    _used.clear()


def used() -> dict[str, str]:
    """A tag for a run's record: the own folders that gave a file to what was composed, where there are any."""
    return {"config_folders": ", ".join(_used)} if _used else {}


def folders() -> list[Path]:
    """Own folders, without those that hold no group. Raises InputError for one that is asked for and not there."""
    asked = {"--config-dir": _chosen[0] if _chosen else "", ENVIRONMENT: os.environ.get(ENVIRONMENT, "")}
    found = []
    for source, given in asked.items():
        if given:
            folder = Path(at_home(given)).absolute()
            if not folder.is_dir():
                raise InputError(f"{source} {given}: no such folder; give one with groups, such as noise/lab.yaml")
            found.append(folder)
    here = Path("configs").absolute()
    if here.is_dir() and not (here / "__init__.py").exists():  # a package's own tree, of this or of another checkout
        found.append(here)
    return list(dict.fromkeys(folder.resolve() for folder in found))


def files() -> dict[str, dict[str, list[Path]]]:
    """Group -> option -> its files: one, or more where an own folder has the name of another's option."""
    groups: dict[str, dict[str, list[Path]]] = {}
    for folder in (TREE, *folders()):
        for file in sorted(folder.glob("*/*.yaml")):
            group = file.parent.name
            if group in groups or (folder == TREE and not group.startswith(("_", "."))):
                groups.setdefault(group, {}).setdefault(file.stem, []).append(file)
    return groups


def options() -> dict[str, dict[str, str]]:
    """Group -> option -> first comment line of its file."""
    return {group: {name: headline(own[0]) for name, own in found.items()} for group, found in files().items()}


def take(group: str, name: str) -> Path:
    """The file of an option; an own folder is remembered as used. Raises InputError for a name that there is not, or
    that two folders have."""
    there = files().get(group, {})
    if name not in there:
        raise InputError(f"{group}={name}: no such option; {group} has {', '.join(there)}")
    file, *others = there[name]
    if others:
        raise InputError(f"{group}={name}: {others[0]} has the name of {file}; give it another")
    if not file.is_relative_to(TREE):
        _used[str(file.parent.parent)] = None
    return file


def option(group: str, name: str, schema: type[T]) -> T:
    """One option of a group, checked. Raises InputError naming the possible ones."""
    values = from_yaml(take(group, name).read_text(encoding="utf-8"))
    return schema(**{**values, **homes(values)})


def from_yaml(text: str) -> dict[str, Any]:
    """What `to_yaml` wrote, as plain values; numbers such as 1e-05 stay numbers. Raises InputError for another text."""
    try:
        found = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise InputError(f"not the YAML of a config ({said(error)})") from error
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'adapter': {'dim': 4}} -> {'adapter.dim': 4}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def homes(values: dict[str, Any]) -> dict[str, str]:
    """The paths among values, by their dotted keys, that begin with ~, with it written out."""
    flat = {key: value for key, value in flatten(values).items() if key.rpartition(".")[2] in PATHS}
    return {key: at_home(value) for key, value in flat.items() if isinstance(value, str) and value.startswith("~")}


def words_of(command: str) -> list[str]:
    """Groups and keys that a command takes; a study's own from its YAML, since its module is heavy."""
    file = next((f for f in (TREE / f"sweep_{command}.yaml", TREE / f"{command}.yaml") if f.is_file()), None)
    if file is None:
        return [*files(), *leaf_keys()]
    own = from_yaml(file.read_text(encoding="utf-8"))
    groups = {group: name for entry in own.pop("defaults") if isinstance(entry, dict) for group, name in entry.items()}
    if command in VERBS:
        return sorted({*groups, *leaf_keys(VERBS[command])})
    known = [*leaf_keys(PerplexityConfig), *leaf_keys(TrainConfig), *leaf_keys(LauncherConfig, "launcher.")]
    return sorted({*groups, *flatten(own), *(key for key in known if key.partition(".")[0] in groups)})


def commands_with(group: str) -> list[str]:
    """The commands that take a group."""
    found = sorted(TREE.glob("*.yaml"))
    return [spoken(file.stem) for file in found if f"  - {group}: " in file.read_text(encoding="utf-8")]


def spoken(verb: str) -> str:
    """A verb as it is typed: sweep_noise is `sweep noise`, perplexity `eval perplexity`, multirun an option."""
    if verb == "multirun":
        return "train -m"
    return f"eval {verb}" if verb in ("perplexity", "questions", "tasks") else verb.replace("sweep_", "sweep ")


def command_of(experiment: str) -> str | None:
    """What an experiment is for, by the line `# command   qrun sweep noise experiment=...` of its header."""
    for file in files()["experiment"].get(experiment, []):
        if match := re.search(r"^# command\s+qrun ([a-z ]+?)\s+\S*=", file.read_text(encoding="utf-8"), re.MULTILINE):
            return match[1]
    return None


def headline(file: Path) -> str:
    """The first line of a file that says what it is."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (line for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "").lstrip("# ").rstrip()
