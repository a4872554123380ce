"""Every command that README and pages name is one: it parses, its words compose, and the cheap ones run."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from qrun.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    """Words after `qrun` of every command in an indented block or in backticks; <run> and ... are any value."""
    found = {}
    for text in (page.read_text(encoding="utf-8") for page in PAGES):
        blocks = re.findall(r"^ {4}(?:[A-Z_]+=\S+ )?qrun (.*)$", text, re.MULTILINE)
        inline = re.findall(r"`qrun ([^`]+)`", text.replace("\n", " "))
        for line in [*blocks, *inline]:
            words = shlex.split(line.replace("<run>", "run").replace("...", "x"), comments=True)
            found[" ".join(words)] = words
    return found


COMMANDS = commands()


def parsed(words):
    """The command's parameters, by the program's own parser; nothing runs."""
    command, context = get_command(app), None
    while subcommands := getattr(command, "commands", None):
        command, context = (
            subcommands[words[0]],
            command.make_context("qrun", [], parent=context, resilient_parsing=True),
        )
        words = words[1:]
    return command.make_context(command.name, list(words), parent=context).params


def test_commands_are_found_in_blocks_and_in_sentences():
    assert len(COMMANDS) > 30 and {"ui", "config", "eval compare run run:base"} <= COMMANDS.keys()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_named_command_parses_and_its_words_compose(qrun, monkeypatch, tmp_path, line):
    words = COMMANDS[line]
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "fez.yaml").write_text("name: fez\ncz: 4e-3\n")  # which the page writes before
    monkeypatch.setenv("QRUN_CONFIG_DIR", str(tmp_path))
    if words[0].startswith("--"):  # an option of the program itself
        assert any(words[0] in option.opts for option in get_command(app).params)
        return
    if "cfg" not in parsed(words):
        return
    code, out, err = qrun(*words, "--cfg", "hash")
    assert code == 0 and re.fullmatch(r"[0-9a-f]{8}\n", out), err


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in COMMANDS if re.match("config|doctor|plan|sweep|recover", line)])
def test_a_cheap_command_runs(qrun, monkeypatch, tmp_path, line):
    monkeypatch.chdir(tmp_path)
    dry = ["--dry-run"] if re.match("sweep|recover", line) else []
    code, out, err = qrun(*COMMANDS[line], *dry)
    assert code == 0 and len(out.splitlines()) > (0 if "--repair" in line else 5), err
    assert [path.name for path in tmp_path.iterdir()] == re.findall(r"--draw (\S+)", line)
