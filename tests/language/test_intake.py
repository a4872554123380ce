"""Files as users have them: format by content, and one line for what is no text."""

import json
import os

import pytest

from qrun.config.schema import DataConfig, QuestionsConfig
from qrun.errors import InputError
from qrun.language import corpus, intake, questions
from qrun.language.intake import read_rows

ITEMS = ["First text about circuits.", "Second one."]


def parquet(path, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.txt", "\n\n".join(ITEMS), "paragraphs"),
        ("a.md", "\r\n\r\n".join(ITEMS), "paragraphs"),
        ("a.txt", "\ufeff" + "\n".join(ITEMS), "lines of a text without blank lines"),
        ("a", json.dumps(ITEMS), "JSON"),
        ("a.txt", json.dumps({"1": ITEMS[0], "2": ITEMS[1]}), "JSON"),
        ("a.json", json.dumps({"1": {"text": ITEMS[0]}, "2": {"text": ITEMS[1], "x": 0}}), "JSON"),
        ("a.json", "\n".join(json.dumps({"text": t}) for t in ITEMS), "JSON lines"),
        ("a.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, ITEMS)) + "\n", "JSON lines"),
        ("a.jsonl", json.dumps(ITEMS, indent=1), "JSON"),
        ("a.csv", f"id,text\n1,{ITEMS[0]}\n2,{ITEMS[1]}\n", "CSV"),
        ("a.dat", f'"id"\t"text"\n1\t{ITEMS[0]}\n2\t{ITEMS[1]}\n', "CSV"),
        ("a.csv", "sentence\n" + "\n".join(ITEMS), "CSV"),
    ],
)
def test_a_format_is_known_by_its_content(tmp_path, name, content, form):
    (tmp_path / name).write_text(content, newline="")
    rows = read_rows(tmp_path / name, "data.path")
    assert (rows.texts, rows.form) == (ITEMS, form)
    assert rows.running == (form not in ("JSON", "JSON lines", "CSV"))
    assert rows.told == f"{form}, begins 'First text about circuits.'"


def test_a_parquet_file_is_read_whatever_its_name(tmp_path):
    parquet(tmp_path / "a.txt", id=[1, 2, 3], text=[ITEMS[0], None, ITEMS[1]])
    assert read_rows(tmp_path / "a.txt", "data.path").texts == ITEMS


def test_a_line_separator_inside_a_string_is_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028line"}\n{"text": "two"}\n')
    assert read_rows(tmp_path / "a.jsonl", "data.path").texts == ["one\u2028line", "two"]


def test_a_csv_field_of_any_length_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1," + "x" * 200_000 + "\n")
    assert len(read_rows(tmp_path / "a.csv", "data.path").texts[0]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'["ok", "\\ud800"]', "text 2 has a lone surrogate"),
        ("a.json", b"[" * 10**5, "nested too deeply"),
        ("a.json", b'["ok", 5]', "found 5 as item 2"),
        ("a.json", b'{"documents": ["a"]}', r"found \['a'\] as item 1"),
        ("a.json", b"5", "found a int"),
        ("a.jsonl", b'{"text": null}', "found an object without a text `text` as item 1"),
        ("a.parquet", b"PAR1 and no more", "not a parquet file that can be read"),
        ("a.txt", b"text\0with zeros", "not a text"),
        ("a.txt", b"\xff\xfea\0", r"not UTF-8 text \(byte 0\)"),
        ("a.csv", b"a,b\n1,2\n", "no column text; its columns are a, b"),
        ("a.csv", b"id,text\n1\n", "row 2 has 1 columns, the header 2"),
        ("a.csv", b'id,text\n1,"open\n', "not a CSV file"),
        ("a.txt", b" \n\n ", r"the text is empty \(paragraphs\)"),
    ],
)
def test_what_is_no_text_is_told_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as stop:
        read_rows(tmp_path / name, "data.path")
    assert f"data.path={tmp_path / name}: " in str(stop.value)


def test_only_regular_files_of_bounded_size_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a device"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=what):
            intake.read_bytes(intake.Path(path), "data.path")
    with pytest.raises(InputError, match=r"data.path=.*pipe: a device"):
        corpus.load(DataConfig(name="text", source="text", path=str(tmp_path / "pipe")))
    (tmp_path / "large").write_text("x" * 11)
    monkeypatch.setattr(intake, "LARGEST", 10)
    with pytest.raises(InputError, match="GiB at most"):
        intake.read_bytes(tmp_path / "large", "data.path")


def wikitext(folder):
    return corpus.load(DataConfig(name="wikitext2", source="wikitext2", path=str(folder)))


@pytest.mark.parametrize("name", ["wiki.{}.raw", "wiki.{}.tokens", "{}.txt"])
def test_wikitext_is_taken_by_its_released_names(tmp_path, name):
    for split in ("train", "valid", "test"):
        (tmp_path / name.format(split)).write_text(f" = {split} = \n\n words\x85 of it \n")
    (tmp_path / "training-notes.txt").write_text("not a text of it")
    found = wikitext(tmp_path)
    assert found.splits["validation"] == [" = valid = \n \n words\x85 of it \n"]
    assert found.told == ", ".join(name.format(split) for split in ("train", "valid", "test"))


def test_another_text_is_wikitexts_only_when_it_is_the_only_one_and_is_named(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.raw").write_text(" = A = \n")
    (tmp_path / "wiki.train.raw").rename(tmp_path / "train_subset.txt")
    assert wikitext(tmp_path).told.startswith("train_subset.txt, ")
    (tmp_path / "train-notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"train-notes.txt and train_subset.txt could both be the train text"):
        wikitext(tmp_path)


def test_a_name_too_long_is_told():
    with pytest.raises(InputError, match=r"^data.path=a+: File name too long"):
        corpus.load(DataConfig(name="text", source="text", path="a" * 256))


def test_a_text_too_short_to_cut_says_what_was_read(tmp_path):
    (tmp_path / "a.txt").write_text("One paragraph only")
    with pytest.raises(InputError, match=r"has 1 documents \(paragraphs, begins 'One paragraph only'\); give more"):
        corpus.load(DataConfig(name="text", source="text", path=str(tmp_path / "a.txt")))


@pytest.mark.parametrize(
    ("answer", "index"), [("AB", None), ("", None), ("²", None), ("4", None), ("-1", None), ("D", 3), (" 2 ", 2)]
)
def test_an_answer_is_one_letter_or_number(tmp_path, answer, index):
    (tmp_path / "x_test.csv").write_text(f"q,1,2,3,4,{answer}\n")
    config = QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path))
    if index is None:
        with pytest.raises(InputError, match="expected 0-3 or A-D"):
            questions.load(config, 0)
    else:
        assert questions.load(config, 0).questions[0].answer == index


def test_a_parquet_row_that_is_no_question_is_told(tmp_path):
    (tmp_path / "x").mkdir()
    config = QuestionsConfig(name="mmlu", source="mmlu", path=str(tmp_path))
    for choices, asked in ((["1"], "q"), (["1", "2", "3", None], "q"), (["1", "2", "3", "4"], None)):
        parquet(tmp_path / "x" / "test.parquet", question=[asked], choices=[choices], answer=[0])
        with pytest.raises(InputError, match="row 1: expected a question and 2 to 10 choices"):
            questions.load(config, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"pick": [-1], "subjects": ["a"]}, "questions.pick"),
        ({"subjects": ["*"]}, "questions.subjects"),
        ({"subjects": ["a", "a"]}, "questions.subjects"),
        ({"subjects": ["a"], "pick": [0], "reported": ["A", "B"]}, "questions.reported"),
    ],
)
def test_odd_choices_of_questions_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        QuestionsConfig(name="mmlu", source="mmlu", **words)
