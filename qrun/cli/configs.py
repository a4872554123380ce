"""`qrun config`: the groups, or the commented files of one group."""

from qrun.config.compose import TREE, options
from qrun.errors import InputError
from qrun.report.screen import listing, say


def show(group: str | None) -> None:
    """Print all groups and options, or the files of `group`."""
    groups = options()
    if group is None:
        numbered = ((name, *pair) for name, found in groups.items() for pair in enumerate(found.items()))
        rows = [["" if line else name, *option] for name, line, option in numbered]
        listing(["group", "option", "what it is"], rows)
        say("\nPick with group=option, change one value with group.key=value; "
            "`qrun config GROUP` prints the files, `--cfg job` the result.")  # fmt: skip
        return
    if group not in groups:
        raise InputError(f"config {group}: no such group; groups are {', '.join(groups)}")
    for option in groups[group]:
        say(f"--- {group}={option}\n{(TREE / group / f'{option}.yaml').read_text(encoding='utf-8').rstrip()}\n")
