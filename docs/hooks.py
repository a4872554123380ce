"""What `make docs` adds to the pages in docs/: commands and configs as the program itself tells them, and the Markdown
and figures of the repository at their own places, so that links between them are the same in both."""

import re
import subprocess
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "results/*.md",
    "results/*.png",
    "results/bench/*.md",
    "results/*/*/page.md",
    "results/*/*/*.png",
)


def on_files(files, config):
    """The repository's own pages, and two that are made here."""
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)}):
        name = path.relative_to(ROOT).as_posix()
        if name != "README.md":  # index.md takes it in, up to the guide
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "configs.md", content=configs()))
    return files


def on_page_markdown(markdown, page, **_):
    """Where Python-Markdown and GitHub differ: lists are indented by four, and the README is the index here."""
    if page.file.src_uri == "CONTRIBUTING.md":
        markdown = re.sub(r"^(?= {3}\S| {7})", " ", markdown, flags=re.MULTILINE)
    return markdown if "/" in page.file.src_uri else markdown.replace("(README.md)", "(index.md)")


def commands():
    """`qrun --help` and that of every command, by typer's own writer."""
    command = [sys.executable, "-m", "typer", "qrun.cli.main", "utils", "docs", "--name", "qrun", "--title", "Commands"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def configs():
    """Groups and options with the first lines of their files, as `qrun config`."""
    from qrun.config.tree import TREE, options

    lines = ["# Configs", "", "`group=option` picks one, `group.key=value` changes a key of it.", ""]
    for group, found in options().items():
        lines += [f"## {group}", "", "| option | what it is |", "| --- | --- |"]
        lines += [f"| `{group}={option}` | {says.replace('|', ' ')} |" for option, says in found.items()]
        lines += ["", *(part for option in found for part in shown(TREE / group / f"{option}.yaml"))]
    return "\n".join(lines)


def shown(file):
    """A config file, folded."""
    text = file.read_text(encoding="utf-8").rstrip()
    return [f'??? note "{file.parent.name}/{file.name}"', "", "    ```yaml", *("    " + x for x in text.split("\n")),
            "    ```", ""]  # fmt: skip
