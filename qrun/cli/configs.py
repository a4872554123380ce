"""`qrun config`: the groups, or the commented files of one group."""

from pathlib import Path

from qrun.config.tree import TREE, files, folders, headline
from qrun.errors import InputError
from qrun.report.screen import listing, say


def show(group: str | None) -> None:
    """Print all groups and options, or the files of `group`; own files are named."""
    groups = files()
    if group is None:
        rows = []
        for name, found in groups.items():
            for line, (option, own) in enumerate(found.items()):
                rows.append(["" if line else name, option, headline(own[0]) + _where(own)])
        listing(["group", "option", "what it is"], rows)
        say("\nPick with group=option, change one value with group.key=value.")
        say("`qrun config GROUP` prints the files, `--cfg job` the result.")
        mine = "\n".join(["Own folders:", *map(str, folders())])
        say(mine if folders() else "Own files: --config-dir DIR, QRUN_CONFIG_DIR or ./configs")
        return
    if group not in groups:
        raise InputError(f"config {group}: no such group; groups are {', '.join(groups)}")
    for option, own in groups[group].items():
        for file in own:
            say(f"--- {group}={option}{_where([file])}\n{file.read_text(encoding='utf-8').rstrip()}\n")


def _where(own: list[Path]) -> str:
    """Beside an option that is not the package's, its file; two files of one name are an error when it is used."""
    others = [str(file) for file in own if not file.is_relative_to(TREE)]
    return f" ({', '.join(others)})" if others else ""
