import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrun.config.schema import DataConfig
from qrun.errors import InputError
from qrun.language import docstrings as documentation
from qrun.language.corpus import load, split_by_hash, split_in_order, text_digest, wikitext_pages
from qrun.language.docstrings import docstrings


@given(st.lists(st.text(min_size=1), unique=True, max_size=60))
def test_hash_split_is_a_partition_that_ignores_order_and_other_documents(documents):
    splits = split_by_hash(documents, 0.2, 0.2)
    assert sorted(itertools.chain(*splits.values())) == sorted(documents)
    for document in documents:
        alone = split_by_hash([document], 0.2, 0.2)
        assert next(s for s in alone if alone[s]) == next(s for s in splits if document in splits[s])


def test_order_split_keeps_neighbours_together():
    splits = split_in_order([str(i) for i in range(20)], 0.1, 0.2)
    assert splits == {
        "train": [str(i) for i in range(14)],
        "validation": ["14", "15"],
        "test": ["16", "17", "18", "19"],
    }


def test_digest_sees_text_order_and_borders():
    digests = {text_digest(d) for d in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])}
    assert len(digests) == 4


@pytest.mark.slow
def test_pydoc_is_real_english_in_three_splits():
    corpus = load(DataConfig(name="pydoc", source="pydoc"))
    sizes = {split: sum(len(d.encode()) for d in documents) for split, documents in corpus.splits.items()}
    assert 1.5e6 < sum(sizes.values()) < 4e6 and min(sizes.values()) > 5e4
    assert any("iterator" in d and " the " in d for d in corpus.splits["test"])
    assert len(set(corpus.digests.values())) == 3


def test_parsed_documentation_is_kept_for_one_state_and_one_code(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(documentation, "__file__", str(tmp_path / "code.py"))
    (tmp_path / "code.py").write_text("first")
    parsed = iter(range(9))
    found = [documentation.kept("x", state, lambda: next(parsed)) for state in (["a"], ["a"], ["b"])]
    (tmp_path / "code.py").write_text("second")
    assert found == [0, 0, 1] and documentation.kept("x", ["a"], lambda: next(parsed)) == 2


def test_a_python_without_its_documentation_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="without pydoc_data"):
        load(DataConfig(name="pydoc", source="pydoc"))


def test_docstrings_come_in_file_order_without_indentation():
    source = 'def f():\n    """First docstring of the module, long enough to be text.\n\n    Indented.\n    """\n'
    source += 'class A:\n    """Second docstring of the module, long enough too."""\n'
    assert list(docstrings(source)) == [
        "First docstring of the module, long enough to be text.\n\nIndented.",
        "Second docstring of the module, long enough too.",
    ]


def test_wikitext_rows_become_pages_at_top_level_headings():
    rows = ["", " = First = \n", "", " text \n", " = = Section = = \n", "", " = Second = \n", " more \n"]
    assert wikitext_pages(rows) == [" \n = First = \n \n text \n = = Section = = \n \n", " = Second = \n more \n"]


@pytest.mark.data
def test_real_wikitext_test_split_has_62_pages_and_every_byte(shared):
    corpus = load(DataConfig(name="wikitext2", source="wikitext2", path=str(shared / "wikitext-2-raw")))
    assert [len(corpus.splits[s]) for s in ("validation", "test")] == [60, 62]
    assert "".join(corpus.splits["test"]) == (shared / "wikitext-2-raw" / "wiki.test.raw").read_text()


def text(path, **more):
    return load(DataConfig(name="text", source="text", path=str(path), **more))


def test_text_files_of_each_kind(tmp_path):
    documents = [f"Document number {i} about circuits." for i in range(80)]
    (tmp_path / "a.json").write_text(json.dumps(documents))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents))
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    assert text(tmp_path / "a.json").splits == text(tmp_path / "a.jsonl").splits
    assert text(tmp_path / "a.txt").splits["train"] == documents[:64]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split} paragraph\n\nand another")
    assert text(tmp_path).splits["validation"] == ["validation paragraph", "and another"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\n ", "empty"),
        ("a.txt", b"one paragraph only", "no text in split train|no text in split validation"),
        ("a.txt", b"caf\xe9 in Latin-1", r"not UTF-8 text \(byte 3\)"),
        ("a.json", b"[1, 2]", "expected a list of strings"),
        ("a.json", b"{", "expected a list of strings"),
        ("a.jsonl", b'{"body": "x"}', "expected a list of strings"),
    ],
)
def test_bad_text_files_end_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        text(tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        text(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"no train.txt"):
        text(tmp_path)
    with pytest.raises(InputError, match=r"no wiki.train.raw"):
        load(DataConfig(name="wikitext2", source="wikitext2", path=str(tmp_path)))


def test_wikitext_is_read_from_the_hubs_parquet_files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "wikitext-2-raw-v1").mkdir()
    for split in ("train", "validation", "test"):
        rows = pa.table({"text": ["", f" = {split} = \n", " words \n"]})
        pq.write_table(rows, tmp_path / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet")
    corpus = load(DataConfig(name="wikitext2", source="wikitext2", path=str(tmp_path)))
    assert corpus.splits["validation"] == [" \n = validation = \n words \n"]


def hub_folder(folder, **tables):
    """A folder in the hub's layout: a parquet file a split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir(parents=True)
    for split, columns in tables.items():
        pq.write_table(pa.table(columns), folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def from_hub(folder, **words):
    return load(DataConfig(**{"name": "mine", "source": "hub", "path": str(folder), "column": "body", **words}))


def test_any_dataset_in_the_hubs_layout_is_read_by_its_column_row_by_row(tmp_path):
    rows = {split: [f"{split} row {i}" for i in range(5)] for split in ("train", "validation", "test")}
    rows["train"][1:3] = ["  ", None]
    folder = hub_folder(tmp_path / "d", **{split: {"id": range(5), "body": rows[split]} for split in rows})
    corpus = from_hub(folder)
    assert corpus.splits == {**rows, "train": ["train row 0", "train row 3", "train row 4"]} and not corpus.wikitext
    assert from_hub(folder, rows=4).splits["train"] == ["train row 0", "train row 3"]
    assert corpus.source == str(folder) and corpus.name == "mine"


def test_one_split_of_a_dataset_is_cut_in_three_by_hash(tmp_path):
    documents = [f"Row number {i} of one split." for i in range(60)]
    folder = hub_folder(tmp_path / "d", train={"body": documents}, test={"body": ["other"]})
    assert from_hub(folder, split="train").splits == split_by_hash(documents, 0.1, 0.1)
    with pytest.raises(InputError, match=r"data.split=null: .* has the splits train, test, not validation; give one"):
        from_hub(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"column": "text", "split": "train"}, r"data.column=text: not in \S+; its columns are id, body$"),
        ({"column": "id", "split": "train"}, r"data.column=id: holds values of type int, not text$"),
        ({"split": "dev"}, r"data=mine: \S+ could not be read \(\w+: .*dev.*train"),
        ({"path": "/nowhere/at/all"}, r"data.path=/nowhere/at/all: no such folder$"),
        ({"path": None, "hub_id": "owner/name"}, r"data=mine: owner/name could not be read \(HF_HUB_OFFLINE is set\)$"),
        ({"path": None}, r"data.hub_id=None: data.source=hub needs"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_word_about_a_dataset_is_told_in_one_line(tmp_path, words, said):
    folder = hub_folder(tmp_path / "d", train={"id": [1, 2], "body": ["a", "b"]})
    with pytest.raises(InputError, match=said) as stop:
        from_hub(folder, **words)
    assert "\n" not in str(stop.value)


def test_words_of_data_hub_are_refused_elsewhere():
    with pytest.raises(InputError, match=r"data.column=text: only data=hub has it"):
        DataConfig(name="pydoc", source="pydoc", column="text")


def test_a_dataset_of_the_hub_is_measured_from_the_command_line(qrun, tmp_path, tiny_folder, story_file):
    documents = json.loads(story_file.read_text())
    folder = hub_folder(tmp_path / "d", train={"story": documents})
    words = ["model=local", f"model.path={tiny_folder}", "model.device=cpu", "protocol.ctx=64"]
    words += ["data=hub", f"data.path={folder}", "data.split=train", "data.column=story", "evaluation.max_tokens=500"]
    code, out, err = qrun("eval", "perplexity", *words, f"results={tmp_path / 'r'}")
    assert code == 0 and "data hub: train" in out, err
