"""`qrun qpu`: jobs that runs have sent, and noise presets from calibrations."""

import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qrun.errors import InputError
from qrun.quantum.hardware import FAKES, IbmService, fake_backend, frequencies, ibm_service, read_jobs
from qrun.report.screen import listing, say


def fetch(results: str, service: IbmService | None = None) -> None:
    """Print every stored job and download the counts of finished ones.

    Raises InputError without jobs or without an account.
    """
    folder = Path(results).expanduser().resolve() / "qpu"
    jobs = read_jobs(folder)
    if not jobs:
        raise InputError(f"no jobs in {folder}; device=ibm and device=fake write them there")
    rows = []
    for key, job in jobs.items():
        path = folder / f"{key}.safetensors"
        status = "fetched"
        if not path.is_file():
            if job["backend"].startswith("fake"):
                status = "local, ended with its process"
            else:
                service = service or IbmService(ibm_service(), None)
                handle = service.service.job(job["job_id"])
                status = str(handle.status())
                if status.endswith("DONE"):
                    result = service.wait(job["job_id"], handle)
                    save_file(
                        {str(i): np.ascontiguousarray(frequencies(result[i])) for i in range(job["pubs"])},
                        path.with_suffix(".new"),
                    )
                    os.replace(path.with_suffix(".new"), path)
                    status = "fetched now"
        rows.append([job["job_id"], job["backend"], f"{job['pubs']:,}", f"{job['qpu_seconds']:.0f}", status])
    listing(["job", "backend", "circuits", "QPU s", "status"], rows)


def refresh(backend: str, out: str) -> None:
    """Write the preset of a recorded backend or of one in the account."""
    from qrun.quantum.presets import medians

    target = Path(out).expanduser()
    if target.suffix != ".yaml" or not target.absolute().parent.is_dir():
        raise InputError(f"--out {out}: give a .yaml file in an existing folder")
    source = fake_backend(backend) if backend in FAKES else ibm_service().backend(backend)
    values = {**medians(source), "name": target.stem}
    lines = [
        f"# Medians of {backend}, calibration of {values['date']}",
        f"# refresh: qrun qpu noise {backend} --out {out}",
    ]
    target.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in values.items())]) + "\n")
    say(
        f"{target}: CZ {values['cz']:.3g}, SX {values['sx']:.3g}, T1 {values['t1_us']:.0f} us, T2 "
        f"{values['t2_us']:.0f} us, {values['date']}"
    )
