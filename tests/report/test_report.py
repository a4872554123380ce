"""What `qrun report` writes and where, from studies made by hand; what it must never touch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf

from qrun import studies
from qrun.config.compose import to_yaml
from qrun.config.tree import from_yaml
from qrun.errors import InputError
from qrun.evaluation.results import Results
from qrun.report import report as report_module
from qrun.report.claims import CLAIMS
from qrun.report.page import About, Page, fill, interval, table
from qrun.report.report import ABOUT, MARK, TITLE, log_page, report, standard

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def defaults():
    """YAML of a study's config."""
    kept: dict[tuple, str] = {}

    def of(study, *words):
        if (study, *words) not in kept:
            kept[study, *words] = to_yaml(CATALOGUE.configure(study, list(words)))
        return kept[study, *words]

    return of


def units(perplexity, documents=25):
    spread = np.random.default_rng(0).normal(0, 0.2, documents)
    spread -= spread.mean()
    return {"nats": (100 * (np.log(perplexity) + spread)).tolist(), "weight": [100.0] * documents}


def dim_results(seeds=3, steps=30):
    """Gains at three block dimensions of one site set."""
    rows, found = [], {}

    def add(perplexity=None, **axes):
        key = f"{len(rows):016x}"
        rows.append({**axes, "wall_seconds": 1.5, "key": key, "run_id": f"run{len(rows)}"})
        if perplexity is not None:
            rows[-1] |= {"perplexity": perplexity, "tokens": 2500}
            found[key] = units(perplexity)

    add(32.0, kind="measure", method="none")
    for b, level in ((2, 31.5), (4, 31.0), (8, 30.2)):
        for seed in range(seeds):
            point = {"sites": "one", "b": b, "method": "cayley", "seed": seed, "parameters": 96 * (b - 1)}
            add(kind="train", steps=steps, **{"blocks/entropy_ratio": b / 100}, **point)
            add(level + seed / 100, kind="measure", gain=32.0 - level - seed / 100, **point)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Results(pd.DataFrame(rows, columns=columns), found)


def questions_results():
    arms = {"original": [1] * 12, "compressed": [1] * 12, "adapter": [0] * 6 + [1, 2, 3, 1, 1, 1]}
    rows = [{"kind": "ask", "arm": arm, "trials": 20, "wall_seconds": 1.0, "key": arm} for arm in arms]
    return Results(pd.DataFrame(rows), {arm: {"chosen": chosen, "right": [0.0] * 12} for arm, chosen in arms.items()})


def about_dim(defaults, *words):
    """The description of a dim study."""
    return About("dim", "nano", "qrun sweep dim", defaults("dim", *words), "c0ffee00", KEY, "5eed", "")


@pytest.fixture
def write(tmp_path, defaults):
    """Put a study's folder below tmp_path/source, as a study or another report leaves it. Returns its About."""

    def put(results=None, study="dim", words=(), place=None, **changes):
        about = About(
            study=study, model="nano", command=f"qrun sweep {study}", config=defaults(study, *words),
            config_hash="c0ffee00", study_key=KEY, git_sha="5eed", git_dirty="",
        )  # fmt: skip
        about = replace(about, **changes)
        folder = tmp_path / "source" / study / (place or "nano")
        folder.mkdir(parents=True)
        (results or dim_results()).write(folder)
        (folder / ABOUT).write_text(about.to_json())
        return folder

    return put


class Studies:
    """The catalogue, with every config composed once for all tests."""

    STUDIES, module = studies.STUDIES, staticmethod(studies.module)

    def __init__(self):
        self.kept = {}

    def configure(self, name, words):
        if (name, *words) not in self.kept:
            try:
                self.kept[name, *words] = studies.configure(name, words)
            except InputError as error:
                self.kept[name, *words] = error
        found = self.kept[name, *words]
        if isinstance(found, InputError):
            raise found
        return found


CATALOGUE = Studies()


@pytest.fixture
def made(tmp_path):
    """Report what `write` put there."""

    def make(out="out", source="source"):
        return report("unused", str(tmp_path / out), str(tmp_path / source), CATALOGUE)

    return make


def tree(folder):
    """Every file and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_study_of_the_standard_gets_its_folder_and_the_two_pages(tmp_path, write, made):
    write()
    assert made() == [tmp_path / "out" / "dim" / "nano"]
    found = tree(tmp_path / "out")
    assert set(found) == {"README.md", "LOG.md", *(f"dim/nano/{name}" for name in (
        "page.md", "dim-one.png", "dim-one.svg", "cells.csv", "units.json", ABOUT, MARK))}  # fmt: skip
    page = found["dim/nano/page.md"].decode()
    assert page.startswith("# dim, nano\n") and "`qrun sweep dim`" in page and "without noise](dim-one.png)" in page
    assert "| 4 | 288 | 31.010 | +0.990 |" in page and "| cells | 19 |" in page
    assert "**reproduced** Perplexity improves monotonically" in page
    readme = found["README.md"].decode()
    assert "[nano, dim](dim/nano/page.md) | **reproduced** |" in readme
    assert readme.count("not testable here") == len(CLAIMS) == 19  # one row a claim for the paper's own scale
    assert "No such" not in readme and "# Negative results" in found["LOG.md"].decode()


def test_a_report_removes_a_figure_that_its_own_readme_showed_and_nothing_else(tmp_path, write, made):
    write()
    out = tmp_path / "out"
    out.mkdir()
    for name in ("gain-nano.png", "gain-nano.svg", "gain-mine.png"):
        (out / name).write_bytes(b"of dim and controls as they were")
    (out / "README.md").write_text("# Notes\n")
    with pytest.raises(InputError, match=r"README.md: not written by `qrun report`"):
        made()
    (out / "README.md").write_text(f"{TITLE}\n\n![gain](gain-nano.png)\n")
    made()
    assert sorted(path.name for path in out.glob("gain-*")) == ["gain-mine.png"]


@pytest.mark.slow
def test_numbers_are_graded_when_the_report_is_made(tmp_path, write, made):
    folder = write()
    made()
    text = (folder / "cells.csv").read_text()
    rows = pd.read_csv(folder / "cells.csv", float_precision="round_trip")
    gone = (rows["kind"] == "measure") & (rows["b"] == 8)
    rows.loc[gone, ["perplexity", "gain"]] = [33.0, -1.0]
    rows.to_csv(folder / "cells.csv", index=False)
    found = json.loads((folder / "units.json").read_text())
    (folder / "units.json").write_text(json.dumps(found | {key: units(33.0) for key in rows.loc[gone, "key"]}))
    assert (folder / "cells.csv").read_text() != text
    made()
    assert "**not reproduced** Perplexity improves" in (tmp_path / "out" / "dim" / "nano" / "page.md").read_text()


@pytest.mark.slow
def test_a_report_made_from_a_report_is_the_same_to_the_byte(tmp_path, write, made):
    write()
    write(questions_results(), "questions", command="qrun eval questions")
    made()
    made("again", "out")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    made("again", "again")  # and over itself
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


@pytest.mark.slow
def test_studies_are_reported_one_at_a_time_beside_those_that_lie_there(tmp_path, write, made):
    """Each graded by today's code, those of another day's defaults in their place and called so."""
    write()
    made()
    dim = tmp_path / "out" / "dim" / "nano"
    settings = yaml.safe_load(json.loads((dim / ABOUT).read_text())["config"])
    settings["study"]["dims"] = [2, 4]  # as if that had been the default
    about = json.loads((dim / ABOUT).read_text())
    (dim / ABOUT).write_text(json.dumps(about | {"config": yaml.safe_dump(settings)}))
    (dim / "page.md").write_text("as an older version wrote it")
    shutil.rmtree(tmp_path / "source")
    write(questions_results(), "questions", command="qrun eval questions", study_key="feedbeef" * 2)
    assert made() == [tmp_path / "out" / "questions" / "nano"]
    readme, log = ((tmp_path / "out" / name).read_text() for name in ("README.md", "LOG.md"))
    assert "[nano, dim](dim/nano/page.md), older settings | **reproduced** |" in readme
    assert "[nano, questions](questions/nano/page.md) |" in readme and "## dim, [nano]" in log
    assert (dim / "page.md").read_text().startswith("# dim, nano")
    before = tree(tmp_path / "out")
    made("out", "out")  # graded again in their places
    assert tree(tmp_path / "out") == before
    (dim / ABOUT).write_text("{")  # what is broken does not stop the others
    assert (
        made() and (dim / ABOUT).read_text() == "{" and "dim/nano" not in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (dim_results(seeds=2), ()),
        (dim_results(), ("study.dims=[2,4]",)),
        (dim_results(), ("training.lr=0.5",)),
        (dim_results(), ("study.trials=1",)),
        (dim_results(), ("evaluation.max_tokens=512",)),
        (dim_results(), ("adapter.side=output",)),
        (dim_results(), ("data=libdocs",)),
        (dim_results(), ("data.clean=false",)),
        (dim_results(), ("data@home=null",)),
        (dim_results(), ("protocol@second=fixed_window",)),
    ],
    ids=[
        "two seeds",
        "other dims",
        "other rate",
        "no scan of rates",
        "less text",
        "other side",
        "other text",
        "text as it comes",
        "no home",
        "other second protocol",
    ],
)
def test_fewer_seeds_and_other_words_are_below_the_standard(defaults, results, words):
    assert standard(about_dim(defaults), dim_results(), CATALOGUE) == "nano"
    assert standard(about_dim(defaults, *words), results, CATALOGUE) is None


def test_where_the_text_lies_is_no_part_of_the_standard(defaults):
    about = about_dim(defaults, "experiment=smollm2_dim", "data.path=/data/here")
    about = replace(about, model="smollm2", command="qrun sweep dim experiment=smollm2_dim")
    assert standard(about, dim_results(), CATALOGUE) == "smollm2_dim"


@pytest.mark.slow
def test_a_study_below_the_standard_never_touches_the_claims(tmp_path, write, made):
    write()
    made()
    before = tree(tmp_path / "out")
    write(dim_results(seeds=2), place="other", study_key="feedbeef" * 2)
    (tmp_path / "below" / "dim").mkdir(parents=True)
    (tmp_path / "source" / "dim" / "other").rename(tmp_path / "below" / "dim" / "other")
    assert made(source="below") == [tmp_path / "out" / "dim" / "nano-feedbeef"]
    after = tree(tmp_path / "out")
    assert {name: content for name, content in after.items() if "nano-feedbeef" not in name} == before
    assert "dim/nano-feedbeef/page.md" in after


@pytest.mark.slow
def test_words_that_change_no_number_leave_the_standard(tmp_path, write, made):
    write(words=("results=elsewhere", "launcher.workers=2", "name=mine", "seed=3"))
    assert made() == [tmp_path / "out" / "dim" / "nano"]


@pytest.mark.slow
def test_an_experiments_axes_are_of_the_standard(tmp_path, write, made):
    write(
        words=("experiment=smollm2_dim",),
        model="smollm2",
        results=dim_results(steps=300),
        command="qrun sweep dim experiment=smollm2_dim",
    )
    assert made() == [tmp_path / "out" / "dim" / "smollm2_dim"]  # beside the default's dim/smollm2


def test_a_study_of_all_to_all_circuits_from_before_there_was_a_choice_is_that_experiments(defaults):
    words = from_yaml(defaults("noise", "experiment=all_to_all"))
    for key in ("circuit", "coupling", "keep", "repetition"):
        del words["device"][key]
    del words["noise"]["calibration"]
    about = About("noise", "nano", "qrun sweep noise", OmegaConf.to_yaml(words), "c0ffee00", KEY, "5eed", "")
    seeds = Results(pd.DataFrame({"seed": [0, 1, 2]}), {})
    assert standard(about, seeds, CATALOGUE) == "all_to_all"
    assert standard(replace(about, config=defaults("noise")), seeds, CATALOGUE) == "nano"


def test_an_experiment_of_another_model_has_a_folder_of_its_own(defaults):
    about = About("dim", "nano", "", defaults("dim", "experiment=one_v_proj"), "c0ffee00", KEY, "5eed", "")
    assert standard(about, dim_results(), CATALOGUE) == "one_v_proj"
    assert standard(replace(about, model="small"), dim_results(), CATALOGUE) == "one_v_proj-small"


@pytest.mark.slow
def test_where_the_asked_adapter_lies_is_no_part_of_the_standard(tmp_path, defaults):
    words = ("experiment=nano_questions", f"adapter.path={tmp_path}", "model.name=small")
    about = About(
        "questions", "small", "qrun eval questions", defaults("questions", *words), "c0ffee00", KEY, "5eed", ""
    )
    assert standard(about, questions_results(), CATALOGUE) == "nano_questions"


def test_a_claim_that_failed_is_in_the_log_with_a_control_that_won(tmp_path, write, made):
    results = dim_results()
    lora = results.table[(results.table["kind"] == "measure") & (results.table["b"] == 4)].head(1)
    rows = lora.assign(method="lora", gain=2.0, parameters=256)
    write(Results(pd.concat([results.table, rows], ignore_index=True), results.units))
    made()
    log = (tmp_path / "out" / "LOG.md").read_text()
    assert "## dim, [nano](dim/nano/page.md), 01234567\n" in log and "b=4: LoRA gains +2.000 with 256 parameters" in log
    made()
    assert (tmp_path / "out" / "LOG.md").read_text() == log


def logged(before, *studies):
    """The log after a report of studies: (folder, key, what failed)."""
    pages = []
    for folder, key, *negatives in studies:
        about = About(folder.partition("/")[0], "nano", "", "", "", key * 2, "", "")
        pages.append((Path(folder), None, Page(about, {}, [], "", negatives)))
    return log_page(pages, before)


def entries(log):
    head, *found = log.split("\n## ")
    assert head.startswith("# Negative results\n")
    return [entry.strip() for entry in found]


def test_a_report_leaves_the_log_of_other_studies_and_writes_that_of_its_own_again():
    first = logged("", ("dim/nano", "aaaaaaaa", "LoRA won"), ("noise/routed", "bbbbbbbb"))
    one, two = entries(first)
    assert one == "dim, [nano](dim/nano/page.md), aaaaaaaa\n\n- LoRA won"
    assert two == "noise, [routed](noise/routed/page.md), bbbbbbbb\n\nNothing failed or was beaten."
    more = logged(first, ("sites/nano", "cccccccc", "eaten", "eaten again"))
    assert entries(more) == [one, two, "sites, [nano](sites/nano/page.md), cccccccc\n\n- eaten\n- eaten again"]
    again = logged(more, ("dim/nano", "aaaaaaaa", "OFT won"))
    assert entries(again) == [one.replace("LoRA", "OFT"), *entries(more)[1:]]
    assert logged(again, ("dim/nano", "aaaaaaaa", "OFT won")) == again


def test_the_log_of_a_study_whose_page_is_anothers_now_stays_and_says_so():
    first = logged("", ("dim/nano", "aaaaaaaa", "LoRA won"), ("noise/nano", "bbbbbbbb", "gone"))
    later = logged(first, ("dim/nano", "cccccccc", "dense won"))
    old, other, new = entries(later)
    superseded = "Superseded by study cccccccc, whose page this is now."
    assert old == f"dim, [nano](dim/nano/page.md), aaaaaaaa\n\n{superseded}\n\n- LoRA won"
    assert other == entries(first)[1] and new == "dim, [nano](dim/nano/page.md), cccccccc\n\n- dense won"
    assert logged(later, ("dim/nano", "cccccccc", "dense won")) == later
    assert entries(logged(later, ("dim/nano", "dddddddd")))[0] == old  # by the first that took its page
    back = entries(logged(later, ("dim/nano", "aaaaaaaa", "LoRA won")))
    assert "Superseded" not in back[0] and "Superseded by study aaaaaaaa" in back[2]


def test_a_log_from_before_entries_had_keys_is_kept():
    old = "# Negative results\n\nWritten.\n\n## dim, [nano](dim/nano/page.md)\n\n- LoRA won\n"
    kept, new = entries(logged(old, ("dim/nano", "cccccccc", "dense won")))
    assert kept.startswith("dim, [nano](dim/nano/page.md)\n\nSuperseded by study cccccccc") and "LoRA won" in kept
    assert new.endswith("cccccccc\n\n- dense won")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "file", "new", "old"])
def test_what_carries_no_mark_is_never_replaced(tmp_path, write, made, what):
    write()
    place = tmp_path / "out" / "dim" / {"folder": "nano", "file": "nano", "new": ".nano.new", "old": ".nano.old"}[what]
    if what == "file":
        place.parent.mkdir(parents=True)
        place.write_text("mine")
    else:
        place.mkdir(parents=True)
        (place / "thesis.txt").write_text("mine")
    before = tree(tmp_path / "out")
    with pytest.raises(InputError, match="move it away"):
        made()
    assert tree(tmp_path / "out") == before


@pytest.mark.slow
def test_a_crash_while_writing_leaves_the_old_folder_whole(tmp_path, write, made, monkeypatch):
    folder = write()
    made()
    before = tree(tmp_path / "out")
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, "command": "qrun sweep dim again"}))

    def broken(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(report_module, "draw", broken)
    with pytest.raises(OSError, match="no space"):
        made()
    own = tmp_path / "out" / "dim" / "nano"
    assert {name: found for name, found in tree(tmp_path / "out").items() if ".new/" not in name} == before
    monkeypatch.undo()
    made()  # what the crash left behind is in nobody's way
    assert "again" in (own / "page.md").read_text() and sorted(p.name for p in own.parent.iterdir()) == ["nano"]


@pytest.mark.parametrize("model", ["../x", "..", "/tmp/x", "a/b", "", "a\nb", 7, None, ["x"]], ids=repr)
def test_a_foreign_studys_model_name_cannot_lead_elsewhere(tmp_path, write, made, model):
    write(model=model)
    with pytest.raises(InputError, match=r"model=|not a study's description"):
        made()
    assert not (tmp_path / "out").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("key", ["../../x", "/tmp/x", "", None, 7], ids=repr)
def test_nor_can_its_key(tmp_path, write, made, key):
    write(dim_results(seeds=2), study_key=key)
    with pytest.raises(InputError, match=r"study_key=|not a study's description"):
        made()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (ABOUT, "{", "not a study's description"),
        (ABOUT, "[]", "not a study's description"),
        (ABOUT, '{"study": "dim"}', "not a study's description"),
        ("cells.csv", "", "no readable"),
        ("units.json", "{", "no readable"),
    ],
)
def test_broken_files_are_named_in_one_line(tmp_path, write, made, file, content, message):
    folder = write()
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        made()
    assert str(folder) in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", ["", "- 1", "study: 1", "training: 1"], ids=repr)
def test_a_study_without_a_config_is_below_the_standard(tmp_path, write, made, config):
    write(config=config)
    assert made() == [tmp_path / "out" / "dim" / f"nano-{KEY[:8]}"]


def test_a_config_that_is_no_yaml_is_refused(write, made):
    write(config="a: [")
    with pytest.raises(InputError, match="its config is no YAML"):
        made()


def test_an_unknown_study_is_left_out_and_does_not_stop_the_others(write, made):
    write(**{"study": "dim"})
    folder = write(place="other")
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, "study": "../dim"}))
    assert [path.name for path in made()] == ["nano"]


def test_nothing_to_report_says_what_to_run(tmp_path, made):
    with pytest.raises(InputError, match="no finished study there"):
        made()


# --- pieces of a page


def test_a_missing_number_makes_a_dash():
    rows = pd.DataFrame([{"b": 4, "low": 0.123, "high": np.nan}, {"b": 8, "low": 1.0, "high": 2.0}])
    assert table(rows, {"b": "{b:g}", "range": "[{low:.1f}, {high:.1f}]"}).splitlines() == [
        "| b | range |", "| --- | ---: |", "| 4 | - |", "| 8 | [1.0, 2.0] |",
    ]  # fmt: skip
    assert fill("{missing:.2f}", {}) == "-" and fill("fixed", {}) == "fixed" and fill("{x:.1%}", {"x": 0.5}) == "50.0%"
    assert interval({"p_low": 1.0, "p_high": 2.0}, "p") == "[+1.000, +2.000]"
    assert interval({"p_low": np.nan, "p_high": np.nan}, "p") == "no interval"
    assert "a\\|b" in table(pd.DataFrame([{"x": "a|b"}]), {"x": "{x}"})


def test_a_claims_command_leaves_out_who_computed_the_cells():
    words = "qrun sweep noise launcher=ray launcher.workers=2 experiment=routed"
    about = About("noise", "nano", words, "", "", "", "", "")
    assert about.shown == "qrun sweep noise experiment=routed" and about.command == words
