"""Tokens planted in the environment, in words, files and errors: no output has them."""

import logging

import pytest

from qrun.config.compose import compose, config_hash
from qrun.errors import LONGEST, InputError, redacted

HUB, IBM, PASSWORD = "hf_" + "Ab3" * 11, "ibm-cloud-secret-Zz9-0123456789abcdefg", "tr0ub4dor&3x"


@pytest.fixture
def planted(monkeypatch):
    """The secrets, in the environment as users set them."""
    monkeypatch.setenv("HF_TOKEN", HUB)
    monkeypatch.setenv("QISKIT_IBM_TOKEN", IBM)
    monkeypatch.setenv("MY_DB_PASSWORD", PASSWORD)
    return HUB, IBM, PASSWORD


def leaks(text, planted):
    return [secret for secret in planted if secret in text]


def test_a_run_its_record_and_its_card_have_no_token(qrun, planted, tmp_path, tiny_folder, story_file):
    store = f"results={tmp_path / 'r'}"
    words = ["model=local", f"model.path={tiny_folder}", "data=text", f"data.path={story_file}", "protocol.ctx=64",
             "training.context=64", "training.steps=1", "training.eval_tokens=64",
             "evaluation.max_tokens=256"]  # fmt: skip
    said = [qrun("train", *words, store, "name=good"), qrun("doctor", "--results", tmp_path / "r")]
    said.append(qrun("push", tmp_path / "r" / "runs" / "good" / "adapter", "owner/name", "--dry-run"))
    assert [code for code, *_ in said] == [0, 0, 0], said
    assert not leaks(str(said), planted)
    written = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert {"mlflow.db", "README.md", "env.json"} <= {path.name for path in written}
    assert not [path for path in written for secret in planted if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "word",
    ["name={0}", "results=/tmp/{1}", "data.path='/x/{2}'", "tracking.uri=http://me:{1}@host",
     "name=${{oc.env:HF_TOKEN}}",
     "adapter.options.x={0}", "seed=${{oc.decode:${{oc.env:HF_TOKEN}}}}", "nokey={1}", "model={0}", "{2}"],
)  # fmt: skip
def test_a_word_with_a_secret_is_refused_and_not_repeated(qrun, planted, word):
    code, out, err = qrun("train", word.format(*planted), "--cfg", "job")
    assert code == 2 and len(err.splitlines()) == 1 and not leaks(out + err, planted), err


@pytest.mark.parametrize(
    "lines",
    ["name: {0}", "name: ${{oc.env:HF_TOKEN}}", "seed: ${{oc.decode:7}}",
     "defaults:\n  - override /model: ${{oc.env:HF_TOKEN}}", "training:\n  steps: ${{oc.env:HF_TOKEN}}"],
)  # fmt: skip
def test_an_own_file_cannot_bring_the_environment_into_a_config(qrun, planted, tmp_path, lines):
    (tmp_path / "experiment").mkdir()
    head = "# @package _global_\n# Mine\n# command   qrun train experiment=mine\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(head + lines.format(*planted) + "\n")
    code, out, err = qrun("train", "experiment=mine", "--cfg", "job", "--config-dir", tmp_path)
    assert code == 2 and len(err.splitlines()) == 1 and not leaks(out + err, planted), err


def test_values_of_the_same_config_are_still_filled_in():
    assert compose("train", ["seed=${training.steps}", "training.steps=7"]).seed == 7


def test_the_environment_does_not_change_a_hash(planted):
    assert config_hash(compose("train", [])) == config_hash(compose("train", ["results=/elsewhere"]))


def test_a_bug_keeps_its_traceback_without_secrets_and_says_what_to_do(qrun, planted, monkeypatch):
    def broken(*words):
        logging.getLogger("library").warning("opened with %s", IBM)
        raise RuntimeError(f"refused {HUB} for {PASSWORD}")

    monkeypatch.setattr("qrun.cli.main._composed", broken)
    code, _, err = qrun("train")
    assert code == 1 and "Traceback" in err and "RuntimeError: refused *** for ***" in err and "report" in err
    assert not leaks(err, planted)


def test_a_log_of_a_library_has_no_secret(qrun, planted, monkeypatch, caplog):
    def speaks(*words):
        try:
            raise ValueError(f"inside {HUB}")
        except ValueError:
            logging.getLogger("library").exception("opened with %s", IBM)
        logging.getLogger("library").warning("100%% of %s", "x", "y")

    before = logging.getLogRecordFactory()
    monkeypatch.setattr("qrun.cli.main._composed", speaks)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    before = logging.getLogRecordFactory()
    qrun("train")
    assert "opened with ***" in caplog.text and "inside ***" in caplog.text and not leaks(caplog.text, planted)
    assert logging.getLogRecordFactory() is before


def test_what_looks_like_a_secret_is_hidden_and_words_are_not(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sequential")
    monkeypatch.setenv("SOME_KEY", "short")
    password = "p4ssw0rd-of-mine"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:{password}@host/db")
    assert redacted(password) == "***"
    assert redacted("https://a:b@host/?x=1&token=abc&y=2") == "https://a:***@host/?x=1&token=***&y=2"
    assert redacted(f"{HUB}, hf_strided, sequential, short") == "***, hf_strided, sequential, short"


def test_a_refusal_is_one_short_line_of_printable_characters():
    said = str(InputError("key=" + "x" * 5000 + "\nsecond\tline\udcff: give a number"))
    assert len(said) <= LONGEST and said.startswith("key=xxx") and said.endswith("\\udcff: give a number")
    assert str(InputError("name=a\x1b[31m: é stays")) == "name=a\\x1b[31m: é stays"
