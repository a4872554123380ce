"""Where a run may write: below its results folder, links resolved."""

import pytest

from qrun.errors import InputError
from qrun.files import below


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "r" / "runs").mkdir(parents=True)
    (tmp_path / "r" / "runs" / "out").symlink_to(tmp_path)
    (tmp_path / "r" / "runs" / "in").symlink_to(tmp_path / "r")
    assert below(tmp_path / "r", "runs", "new") == tmp_path / "r" / "runs" / "new"
    assert below(tmp_path / "r", "runs", "in") == tmp_path / "r" / "runs" / "in"
    for parts in (("runs", "out"), ("runs", "out", "x"), ("..",)):
        with pytest.raises(InputError, match=r"leads to .*, out of "):
            below(tmp_path / "r", *parts)
    (tmp_path / "link").symlink_to(tmp_path / "r")  # the results folder itself may be a link
    assert below(tmp_path / "link", "runs", "new") == tmp_path / "link" / "runs" / "new"


def test_a_training_does_not_follow_a_link_out_of_its_results(qrun, tmp_path, tiny_folder, story_file):
    (tmp_path / "r" / "runs").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / "r" / "runs" / "mine").symlink_to(tmp_path / "victim")
    words = ["model=local", f"model.path={tiny_folder}", "data=text", f"data.path={story_file}", "protocol.ctx=64",
             "training.context=64", "training.steps=1", "training.eval_tokens=64"]  # fmt: skip
    code, _, err = qrun("train", *words, f"results={tmp_path / 'r'}", "name=mine")
    assert code == 2 and len(err.splitlines()) == 1 and "runs/mine: a link" in err, err
    assert not list((tmp_path / "victim").iterdir()) and not (tmp_path / "r" / "mlflow.db").exists()


def test_odd_characters_in_paths_lead_where_they_say(qrun, tmp_path, tiny_folder, story_file):
    part = "~a=b #(1) é'c\"&d,[e]"
    text, results, model = (tmp_path / kind / part for kind in ("text", "results", "model"))
    text.parent.mkdir()
    model.parent.mkdir()
    text.write_bytes(story_file.read_bytes())
    model.symlink_to(tiny_folder)
    words = ["model=local", f"model.path={model}", "data=text", f"data.path={text}", "protocol.ctx=64"]
    code, out, err = qrun("eval", "perplexity", *words, "evaluation.max_tokens=128", f"results={results}")
    assert code == 0 and "(JSON, begins " in out, err
    assert (results / "mlflow.db").is_file() and [p.name for p in results.parent.iterdir()] == [part]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("results=pipe", "is no folder that can be written"), ("results=file/x", "is no folder"),
        ("results=a?b", "choose a path without"),
        ("results=res%20x", "choose a path without"),
        ("results=~no-such-user-9/x", "results=~no-such-user-9/x: "),
        ("data.path=pipe", "a device, pipe or socket"),
        ("data.path=/dev/zero", "a device"), ("data.path=absent", "No such file"),
        ("protocol.ctx=9999", "protocol.ctx=9999 and training.context=5000: the model has 1024 positions"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_is_told_before_a_model_is_loaded(qrun, tmp_path, monkeypatch, word, said):
    import os

    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "file").touch()
    monkeypatch.setattr("qrun.language.models.load", None)
    more = ["training.context=5000", "training.eval_tokens=6000"] if "ctx" in word else ["data=text", "data.path=file"]
    code, _, err = qrun("train", *[w for w in more if w.split("=")[0] != word.split("=")[0]], word)
    assert code == 2 and said in err and len(err.splitlines()) == 1, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]
