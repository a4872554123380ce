"""`qrun qpu`: jobs that runs have sent, and noise presets from calibrations."""

from pathlib import Path

from qrun.errors import InputError
from qrun.quantum.hardware import FAKES, IbmService, fake_backend, ibm_service, keep_counts, read_jobs
from qrun.quantum.presets import medians
from qrun.report.screen import listing, say


def fetch(results: str, service: IbmService | None = None) -> None:
    """Print every stored job and download the counts of finished ones. Raises InputError without jobs or without an
    account."""
    folder = Path(results).expanduser().resolve() / "qpu"
    jobs = read_jobs(folder)
    if not jobs:
        raise InputError(f"no jobs in {folder}; device=ibm and device=fake write them there")
    rows = []
    for key, job in jobs.items():
        path = folder / f"{key}.safetensors"
        if path.is_file():
            status = "fetched"
        elif job["backend"].startswith("fake"):
            status = "local, ended with its process"
        else:
            service = service or IbmService(ibm_service(), None)
            handle = service.service.job(job["job_id"])
            status = str(handle.status())
            if status.endswith("DONE"):
                keep_counts(path, service.wait(job["job_id"], handle), job["pubs"])
                status = "fetched now"
        rows.append([job["job_id"], job["backend"], f"{job['pubs']:,}", f"{job['qpu_seconds']:.0f}", status])
    listing(["job", "backend", "circuits", "QPU s", "status"], rows)


def refresh(backend: str, out: str) -> None:
    """Write the preset of a recorded backend or of one in the account."""
    target = Path(out).expanduser()
    if target.suffix != ".yaml" or not target.absolute().parent.is_dir():
        raise InputError(f"--out {out}: give a .yaml file in an existing folder")
    source = fake_backend(backend) if backend in FAKES else ibm_service().backend(backend)
    values = {**medians(source), "name": target.stem}
    head = f"# Medians of {backend}, calibration of {values['date']}\n# refresh: qrun qpu noise {backend} --out {out}\n"
    target.write_text(head + "".join(f"{key}: {value}\n" for key, value in values.items()))
    times = f"T1 {values['t1_us']:.0f} us, T2 {values['t2_us']:.0f} us"
    say(f"{target}: CZ {values['cz']:.3g}, SX {values['sx']:.3g}, {times}, {values['date']}")
