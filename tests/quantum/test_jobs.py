"""The job book and the dispatcher: nothing paid twice, nothing lost, no budget exceeded, whatever happens between."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cloud_support import FAULTS, SHOTS, Cloud, check, dispatcher, fault_table, make_pieces

from qrun.cli.qpu import fetch
from qrun.errors import InputError, RunFailed
from qrun.quantum import dispatch
from qrun.quantum.jobs import Job, JobBook, new_tag, owner

TESTS = Path(__file__).resolve().parents[1]


def script(text, *words):
    """A process of its own with the cloud's helpers."""
    head = "import sys\nfrom cloud_support import *\nfrom qrun.quantum.jobs import *\nimport time\n"
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, "-c", head + text, *map(str, words)], env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def intended(keys, seconds=5.0, **words):
    job = Job(
        new_tag(), "intent", None, "ibm", "mine", "line", None, 1, 9, 1, 4.0, seconds, None, None, owner(), time.time()
    )
    return replace(job, **words), [(key, 0, i, 1) for i, key in enumerate(keys)]


@pytest.mark.slow
def test_a_hundred_runs_with_faults_pay_nothing_twice_lose_nothing_and_keep_the_budget():
    found = fault_table(100)
    assert found["runs"] == 100 and found["ended: measured"] + found["ended: budget spent"] == 100
    assert found["circuits paid twice"] == found["results lost"] == found["runs over budget"] == 0
    assert found["runs with a budget"] > 50 and found["ended: measured"] > 50
    assert all(found[f"fault: {fault}"] >= 5 for fault in FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["killed for good", None])
def test_a_process_killed_while_sending_is_found_out_by_the_next(tmp_path, moment):
    text = """
cloud = Cloud(sys.argv[1] + "/cloud", lambda: "killed for good")
cloud.seconds = (lambda order: os.kill(os.getpid(), signal.SIGKILL)) if sys.argv[2] == "None" else cloud.seconds
dispatcher(sys.argv[1] + "/qpu", cloud).collect(make_pieces(3))
"""
    process = script(text, tmp_path, moment)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (job,) = JobBook(tmp_path / "qpu").jobs()
    assert job.state == "intent" and job.abandoned
    cloud = Cloud(tmp_path / "cloud")
    assert len(cloud.made()) == (1 if moment else 0)
    d = dispatcher(tmp_path / "qpu", cloud)
    assert check(make_pieces(3), d.collect(make_pieces(3)))
    assert d.sent == (0 if moment else 1) and len(cloud.made()) == 1
    assert [job.state for job in d.book.jobs()] == (["done"] if moment else ["refused", "done"])


@pytest.mark.slow
def test_three_processes_keep_all_their_entries(tmp_path):
    text = """
book = JobBook(Path(sys.argv[1]))
for i in range(40):
    job = Job(new_tag(), "intent", None, "ibm", "mine", "x", None, 1, 1, 1, 1.0, 2.0, None, None, owner(), time.time())
    assert book.intend(job, [(f"{sys.argv[2]}-{i}", 0, 0, 1)], None)
    book.sent(job.tag, f"job-{i}")
"""
    processes = [script(text, tmp_path, word) for word in "abc"]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    jobs = JobBook(tmp_path).jobs()
    assert len(jobs) == 120 and {job.state for job in jobs} == {"sent"}


@pytest.mark.slow
def test_three_processes_with_the_same_command_and_budget_send_its_work_once(tmp_path):
    text = """
d = dispatcher(sys.argv[1] + "/qpu", Cloud(sys.argv[1] + "/cloud"), 60)
pieces = make_pieces(12)
for attempt in range(400):
    try:
        assert check(pieces, d.collect(pieces))
        break
    except RunFailed:
        time.sleep(0.02)
else:
    raise SystemExit(3)
"""
    processes = [script(text, tmp_path) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    cloud = Cloud(tmp_path / "cloud")
    assert cloud.paid_twice() == 0 and cloud.billed() <= 60


def test_all_jobs_are_sent_before_one_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "EXECUTIONS_PER_JOB", 4 * SHOTS)
    cloud = Cloud(tmp_path / "cloud")
    events = []
    for name in ("send", "wait", "close"):
        own = getattr(cloud, name)
        monkeypatch.setattr(cloud, name, lambda *words, own=own, name=name: (events.append(name), own(*words))[1])
    pieces = make_pieces(6)
    assert check(pieces, dispatcher(tmp_path / "qpu", cloud).collect(pieces))
    assert events == ["send"] * 3 + ["close"] + ["wait"] * 3


@pytest.mark.parametrize(("fault", "state"), [("failed", "failed"), ("cancelled", "failed"), ("lost", "lost")])
def test_a_job_that_ends_badly_is_sent_once_more_and_then_its_reason_is_told(tmp_path, fault, state):
    faults = iter([fault, None, fault, fault, None])
    cloud = Cloud(tmp_path / "cloud", lambda: next(faults))
    pieces = make_pieces(2)
    assert check(pieces, dispatcher(tmp_path / "qpu", cloud).collect(pieces))
    others = make_pieces(2, 50)
    with pytest.raises(RunFailed, match=r"job job-\S+ on line .*; sent twice; the same command tries it once more"):
        dispatcher(tmp_path / "qpu", cloud).collect(others)
    assert check(others, dispatcher(tmp_path / "qpu", cloud).collect(others))
    jobs = JobBook(tmp_path / "qpu").jobs()
    assert [job.state for job in jobs] == [state, "done", state, state, "done"]
    assert [job.attempt for job in jobs] == [1, 2, 1, 2, 3] and all(job.why for job in jobs if job.state == state)


def test_a_job_that_the_limit_stopped_is_sent_again_only_by_another_start_with_more_time(tmp_path):
    cloud, pieces = Cloud(tmp_path / "cloud", seconds=lambda order: 14.0), make_pieces(2)
    with pytest.raises(RunFailed, match="stopped by the service; after the 9 s it was allowed; the same command"):
        dispatcher(tmp_path / "qpu", cloud).collect(pieces)
    assert len(cloud.made()) == 1
    assert check(pieces, dispatcher(tmp_path / "qpu", cloud).collect(pieces))
    assert [order.seconds for order in cloud.orders] == [9, 18]
    assert [(job.state, job.real_s) for job in JobBook(tmp_path / "qpu").jobs()] == [("failed", 9), ("done", 14)]


def test_a_refusal_is_one_line_and_releases_its_budget(tmp_path):
    faults = iter(["over quota", None])
    cloud, pieces = Cloud(tmp_path / "cloud", lambda: next(faults)), make_pieces(2)
    d = dispatcher(tmp_path / "qpu", cloud, 10)
    with pytest.raises(RunFailed, match=r"^line refused a job: this instance has met its usage limit$"):
        d.collect(pieces)
    assert d.book.spent("ibm") == 0
    assert check(pieces, d.collect(pieces))


def test_a_refusal_waits_for_what_is_on_its_way(tmp_path, monkeypatch):
    """Accounts may have few jobs in the queue at once."""
    monkeypatch.setattr(dispatch, "EXECUTIONS_PER_JOB", 4 * SHOTS)
    faults = iter([None, "over quota", None, None])
    cloud, pieces = Cloud(tmp_path / "cloud", lambda: next(faults)), make_pieces(6)
    assert check(pieces, dispatcher(tmp_path / "qpu", cloud).collect(pieces))


def test_the_budget_is_that_of_the_folder_and_cuts_jobs(tmp_path):
    cloud = Cloud(tmp_path / "cloud", seconds=lambda order: 5.0)
    pieces = make_pieces(8, rows=1)  # 1 s each, and 2 s a job
    d = dispatcher(tmp_path / "qpu", cloud, 7)
    with pytest.raises(InputError) as caught:
        d.collect(pieces)
    said = str(caught.value)
    assert re.search(r"^device.budget_s=7: 3 circuits are missing, about 5 s by estimate; 2 s are left after 5 s", said)
    assert "was not sent" in said and [order.seconds for order in cloud.orders] == [7]  # 5 pieces fit
    with pytest.raises(InputError, match="3 circuits are missing"):
        dispatcher(tmp_path / "qpu", cloud, 7).collect(pieces)
    assert check(pieces, dispatcher(tmp_path / "qpu", cloud, 10).collect(pieces))
    assert [sum(len(v) for _, v, _ in order.pubs) for order in cloud.orders] == [5, 3] and cloud.orders[1].seconds == 5
    assert dispatcher(tmp_path / "qpu", cloud, None).book.spent("ibm") == 10
    assert d.book.spent("fake") == 0


def test_a_job_may_take_half_more_than_its_estimate(tmp_path):
    cloud = Cloud(tmp_path / "cloud")
    for folder in ("qpu", "other"):
        dispatcher(tmp_path / folder, cloud).collect(make_pieces(4, rows=1))  # 2 s + 4 s
    assert cloud.orders[0].seconds == 9 and cloud.orders[0].left is None
    assert cloud.orders[0].seed == cloud.orders[1].seed > 0  # a simulation repeats, wherever it is
    (job,) = JobBook(tmp_path / "qpu").jobs()
    assert (job.estimated_s, job.allowed_s, job.real_s) == (pytest.approx(6), 9, 2)


def test_an_unknown_bill_counts_as_what_the_job_may_take_until_it_is_known(tmp_path):
    cloud = Cloud(tmp_path / "cloud")
    cloud.usage = lambda job, handle: None
    d = dispatcher(tmp_path / "qpu", cloud, 12)
    d.collect(make_pieces(4, rows=1))
    assert d.book.spent("ibm") == 9
    pieces = make_pieces(4, 50, rows=1)
    with pytest.raises(InputError, match="3 circuits are missing, about 5 s by estimate; 0 s are left after 12 s"):
        d.collect(pieces)
    del cloud.usage
    assert check(pieces, d.collect(pieces)) and d.book.spent("ibm") == 6


def test_a_budget_is_kept_and_a_key_taken_in_one_transaction(tmp_path):
    book = JobBook(tmp_path)
    first, second, third = intended("ab"), intended("bc"), intended("d", 6.0)
    assert book.intend(*first, 10) and not book.intend(*second, 100) and not book.intend(*third, 10)
    assert len(book.jobs()) == 1 and book.spent("ibm") == 5
    book.end(first[0].tag, "refused", "no", 0.0)
    assert book.intend(*second, 10) and not book.active("a") and set(book.active("abc")) == {"b", "c"}


def test_another_living_process_is_left_to_send_its_work(tmp_path):
    job, rows = intended(["key-0"], owner="elsewhere:1")
    d = dispatcher(tmp_path, Cloud(tmp_path / "cloud"))
    assert d.book.intend(job, rows, None)
    with pytest.raises(RunFailed, match="elsewhere:1 is sending the same work"):
        d.collect(make_pieces(1))
    assert not job.abandoned and replace(job, time=job.time - 601).abandoned


def test_another_account_does_not_take_jobs_for_lost(tmp_path):
    faults = iter(["lost", "answer and list lost"])
    cloud, pieces, others = Cloud(tmp_path / "cloud", lambda: next(faults)), make_pieces(1), make_pieces(1, 50)
    d = dispatcher(tmp_path / "qpu", cloud)
    d._send(pieces)
    with pytest.raises(RunFailed, match="may have been sent"):
        d.collect(others)
    cloud.account = "other"
    for its in (pieces, others):
        with pytest.raises(RunFailed, match="was sent from another account or instance"):
            d.collect(its)
    assert [job.state for job in d.book.jobs()] == ["sent", "intent"]


def test_counts_that_were_deleted_or_cut_short_are_fetched_again(tmp_path):
    cloud, pieces = Cloud(tmp_path / "cloud"), make_pieces(2)
    dispatcher(tmp_path / "qpu", cloud).collect(pieces)
    (file,) = (tmp_path / "qpu").glob("*.safetensors")
    for spoil in (file.unlink, lambda: file.write_bytes(b"short")):
        spoil()
        d = dispatcher(tmp_path / "qpu", cloud)
        assert check(pieces, d.collect(pieces)) and d.sent == 0
    assert len(cloud.made()) == 1 and [job.state for job in d.book.jobs()] == ["done"]


def test_a_book_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "jobs.sqlite").write_text("something else\n" * 100)
    with pytest.raises(RunFailed, match=r"jobs.sqlite: file is not a database"):
        JobBook(tmp_path).jobs()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="the same command goes on"):
        JobBook(tmp_path / "file").sent("tag", "job")


def test_reading_creates_nothing(tmp_path):
    book = JobBook(tmp_path / "qpu")
    assert book.jobs() == [] and book.spent("ibm") == 0 and book.processor("x") is None and not book.active(["a"])
    assert not book.folder.exists()


def test_fetch_keeps_what_has_ended_and_names_what_has_not(tmp_path, capsys):
    faults = iter(["late", "failed", None])
    cloud = Cloud(tmp_path / "cloud", lambda: next(faults))
    cloud.finished = lambda job: cloud.made()[job]["fault"] != "late"
    d = dispatcher(tmp_path / "qpu", cloud)
    for start in (0, 50, 90):
        d._send(make_pieces(1, start))
    (tmp_path / "qpu" / "jobs.json").write_text("{}")
    fetch(str(tmp_path), cloud)
    out = capsys.readouterr().out
    for words in ("jobs.json", "waiting or running", "failed by the service", "fetched now", "estimated s"):
        assert words in out
    assert [job.state for job in d.book.jobs()] == ["sent", "failed", "done"]
    with pytest.raises(InputError, match="no jobs"):
        fetch(str(tmp_path / "none"))
