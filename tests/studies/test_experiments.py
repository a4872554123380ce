"""Experiment files.

Each is composed by the command in its own header, and listed at its model's true shape without weights.
"""

import re
import shlex

import pytest

from qrun.config.compose import TREE, options

FILES = sorted(options()["experiment"])


def header(name):
    return (TREE / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]


def command(name):
    """The words of the header's command, without what a reader has to fill in."""
    line = re.search(r"^# command\s+(qrun .*?)(?:\s{2,}.*)?$", header(name), re.MULTILINE).group(1)
    return [
        word
        for word in shlex.split(line)[1:]
        if "<" not in word and word not in ("model=local", "model@original=smollm2_instruct")
    ]


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_command_machine_and_expectation_and_the_command_composes(qrun, name):
    assert all(f"# {key}" in header(name) for key in ("command", "machine", "expected"))
    code, out, err = qrun(*command(name), "--cfg", "job")
    assert code == 0, err
    assert out


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "smollm2_dim",
            [
                "sites=all b=4 seed=0: 224,640 parameters",
                "sites=all b=64 seed=4: 4,717,440",
                "sites=one b=4 seed=0: 864 parameters",
                "72 cells",
            ],
        ),
        (
            "smollm2_controls",
            ["oft b=4 seed=0: 224,640", "sites=one dense b=4 seed=0: 331,776", "sites=one diagonal b=4 seed=2: 576"],
        ),
        ("smollm2_noise", ["sites=all b=8 seed=0: 524,160 parameters"]),
        (
            "smollm2_recover",
            [
                "shifted compressed 0.75, sign-constrained, distilled b=4 seed=0: 224,640",
                "home compressed 0.6, healing",
            ],
        ),
        ("llama_noise", ["sites=one b=4 seed=0: 6,144 parameters", "sites=one b=8 seed=0: 14,336"]),
    ],
)
def test_studies_are_listed_at_their_true_shapes_without_weights(qrun, tmp_path, name, shown):
    code, out, err = qrun(*command(name), "--dry-run", f"results={tmp_path / 'r'}")
    assert code == 0, err
    assert all(text in out for text in shown), out
    assert not (tmp_path / "r").exists()


def test_the_papers_sequence_is_planned(qrun):
    code, out, err = qrun(*command("llama_qpu"))
    assert code == 0, err
    assert "1,328" in out
