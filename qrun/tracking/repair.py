"""`qrun doctor --repair`: what killed processes, a lost or a broken database left behind is put in order.

runs of processes that are gone      closed, KILLED
a database that is broken            set aside as mlflow.db.broken
ended runs that it does not know     put back from their records (artifacts/<verb>/<run>/record.json): all where it is
                                     lost or broken; logged models are not, adapters stay
"""

import itertools
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from qrun.tracking import database
from qrun.tracking.store import PROCESS, Store


def repair(results: str, uri: str | None = None) -> Iterator[str]:
    """Do it, and say what was done, a line each. Raises InputError for what it cannot mend."""
    store = Store(results, uri)
    if store.own:
        yield from _rebuild(store)
    if store.empty:
        yield f"{store.where}: no store, and no record of a run to make one from"
        return
    before = {run.run_id for run in store.running()}
    left = store.close_dead()
    yield f"{store.where}: {len(before) - len(left)} runs of processes that are gone were closed (KILLED)"
    for run in left:
        who = run.tags.get(PROCESS, "a process that an older version did not write down")
        yield f"{run.name} {run.run_id}: still RUNNING, by {who}"


def _rebuild(store: Store) -> Iterator[str]:
    path = store.database
    why = None if database.missing(path) else _broken(path)
    records = sorted(store.folder.glob(f"artifacts/*/*/{database.RECORD}"))
    if why is not None:
        aside = next(p for n in itertools.count() if not (p := path.with_suffix(f".db.broken{n or ''}")).exists())
        os.replace(path, aside)
        yield f"{path}: {why}; set aside as {aside.name}"
        if not records:
            yield f"{store.folder / 'artifacts'}: no record of a run there; the next run makes a new store"
    if not records:
        return
    _ = store.client  # makes or checks the database
    known = database.known(path)
    lost = [record for record in records if record.parent.name not in known]
    for verb, own in itertools.groupby(lost, lambda record: record.parent.parent):
        found = list(own)
        bad = database.put_back(path, found, store.experiment(verb.name), verb.as_uri())
        if len(found) > len(bad):
            yield f"{verb.name}: {len(found) - len(bad)} runs are back"
        yield from (f"{record}: not a record of a run; left out" for record in bad)


def _broken(path: Path) -> str | None:
    """What is wrong with a database that MLflow made; None where nothing is."""
    try:
        with database.opened(path) as db:
            found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            return None if found == "ok" else found
    except sqlite3.OperationalError:
        database.check(path)  # in words
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
