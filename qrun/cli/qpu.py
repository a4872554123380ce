"""`qrun qpu`: jobs that runs have sent, and noise presets from calibrations."""

from pathlib import Path

from qrun.config.tree import TREE, folders
from qrun.errors import InputError, RunFailed
from qrun.files import below
from qrun.quantum.calibration import read_calibration
from qrun.quantum.dispatch import Dispatcher
from qrun.quantum.jobs import Job, JobBook
from qrun.quantum.services import FAKES, IbmService, JobFailed, UnknownJob, ibm_account, named_backend, one_line
from qrun.report.screen import listing, say


def fetch(results: str, service: IbmService | None = None) -> None:
    """Print every job of the book and keep the counts of finished ones. Raises InputError without jobs or without an
    account, RunFailed if the service does not answer."""
    book = JobBook(below(Path(results).resolve(), "qpu"))
    if (book.folder / "jobs.json").is_file():
        say(f"{book.folder / 'jobs.json'} is of an older version and is not read; its jobs are in your IBM account")
    jobs = book.jobs()
    if not jobs:
        raise InputError(f"no jobs in {book.folder}; device=ibm and device=fake write them there")
    said = {}
    if any(job.kind == "ibm" and (job.state == "sent" or job.real_s is None) for job in jobs):
        service = service or IbmService(ibm_account())
        dispatcher = Dispatcher(book, service, "ibm", "", None, 0, None)
        for job in jobs:
            if job.kind == "ibm" and job.state == "sent" and job.job_id:
                said[job.tag] = _fetch(job, dispatcher, service)
        dispatcher.learn_usage()
    rows = []
    for job in book.jobs():
        local = "local, ended with its process" if job.kind == "fake" and job.state == "sent" else None
        state = said.get(job.tag) or local or STATES.get(job.state, job.state)
        used = "unknown" if job.real_s is None else f"{job.real_s:.1f}"
        words = [job.job_id or "-", job.processor, f"{job.circuits:,}", f"{job.estimated_s:.0f}", used]
        rows.append([*words, f"{state}: {job.why}" if job.why else state])
    listing(["job", "processor", "circuits", "estimated s", "QPU s", "status"], rows)


STATES = {"done": "fetched", "intent": "perhaps sent; the run's command finds out"}


def _fetch(job: Job, dispatcher: Dispatcher, service: IbmService) -> str | None:
    """Keep the counts of a job, if it has ended; what to say of it, None for what the book says."""
    try:
        if not service.finished(job.job_id or ""):
            return "waiting or running"
        dispatcher.take(job)
    except JobFailed:
        return None
    except UnknownJob:
        return "not known to this account"
    except RunFailed:
        raise
    except Exception as error:
        raise RunFailed(f"job {job.job_id} on {job.processor}: {one_line(error)}") from error
    return "fetched now"


def refresh(backend: str, out: str) -> None:
    """Write the preset of a recorded backend or of one in the account: medians (.yaml), or its calibration qubit by
    qubit (.json), for noise.calibration."""
    target = Path(out)
    if target.suffix not in (".yaml", ".json"):
        raise InputError(f"--out {out}: give a .yaml file (medians) or .json file (every qubit)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: its folder cannot be made ({error})") from error
    chip = read_calibration(named_backend("fake" if backend in FAKES else "ibm", backend))
    noise = chip.typical
    if target.suffix == ".json":
        target.write_text(chip.to_json())
    else:
        values = {"name": target.stem, "date": chip.date[:10], "source": f"medians of {chip.name}", **chip.medians}
        head = f"# Medians of {backend}, calibration of {chip.date[:10]}\n"
        again = f"# refresh: qrun qpu noise {backend} --out {out}\n"
        target.write_text(head + again + "".join(f"{key}: {value}\n" for key, value in values.items()))
    rates = f"medians CZ {noise.cz:.3g}, SX {noise.sx:.3g}, T1 {noise.t1_us:.0f} us, T2 {noise.t2_us:.0f} us"
    say(f"{target}: {rates}; {chip.words}\n{_taken(target)}")


def _taken(target: Path) -> str:
    """How a run takes what was written."""
    if target.suffix == ".json":
        return f"runs take it with noise.calibration={target}"
    groups = target.absolute().parent.parent
    if target.absolute().parent.name != "noise":
        return f"runs take it as noise={target.stem} from a folder noise/ in ./configs or in --config-dir DIR"
    own = "" if groups in (TREE, *folders()) else f" --config-dir {groups}"
    return f"runs take it with noise={target.stem}{own}"
