"""`qrun doctor`: what works on this machine, and what is missing for the rest. Touches no network."""

import os
import platform
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from qrun.errors import InputError
from qrun.language.docstrings import standard_library
from qrun.report.screen import listing
from qrun.tracking.provenance import git_state, packages
from qrun.tracking.store import Store


def doctor(results: str, tracking_uri: str | None = None) -> None:
    """Print one line per thing that a command may need."""
    import torch
    from numba import get_num_threads

    found = {**packages()}
    own, commit = found.pop("qrun-adapters", "not installed"), git_state()["git_sha"][:12]
    threads = f"torch uses {torch.get_num_threads()} threads, the simulator {get_num_threads()}"
    gpu, topics = torch.cuda.is_available(), (standard_library() / "pydoc_data").is_dir()
    hub, ibm, ray = os.environ.get("HF_TOKEN"), os.environ.get("QISKIT_IBM_TOKEN"), find_spec("ray")
    no_topics = "this Python has no pydoc_data; install the full standard library"
    no_hub = "set HF_TOKEN after accepting the licence on the hub, or give model.path="
    no_ibm = "set QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE); device=fake needs none"
    no_client = "pip install 'qrun-adapters[ibm]', also for device=fake"
    account = "QISKIT_IBM_TOKEN is set" if ibm else no_ibm
    no_ray = "pip install 'qrun-adapters[ray]'; launcher=local needs nothing"
    slurm = "submitit and SLURM" if which("sbatch") else "submitit is installed; no SLURM here (sbatch)"
    states = {
        "qrun": f"{own}, commit {commit}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {number}" for name, number in found.items()),
        "processor": f"{os.cpu_count()} cores, {threads}",
        "GPU": torch.cuda.get_device_name(0) if gpu else "none; models and circuits run on the processor",
        "store": _store(results, tracking_uri),
        "model=nano, data=pydoc": "ready" if topics else no_topics,
        "hub models": _hub(),
        "llama (gated)": "HF_TOKEN is set" if hub else no_hub,
        "device=ibm": account if find_spec("qiskit_ibm_runtime") else no_client,
        "launcher=ray": "ray is installed" if ray else no_ray,
        "launcher=submitit": slurm if find_spec("submitit") else "pip install 'qrun-adapters[slurm]'",
    }
    listing(["what", "state"], [[what, state] for what, state in states.items()])


def _store(results: str, tracking_uri: str | None) -> str:
    store = Store(results, tracking_uri)
    try:
        if store.own and not store.folder.exists():
            return f"{store.folder} will be created"
        store.check_writable()
    except InputError as error:
        return str(error)
    return f"{store.folder}, writable, no run yet" if store.empty else f"{store.where}, writable"


def _hub() -> str:
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    models = sorted(p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*"))
    offline = "offline mode is set; " if os.environ.get("HF_HUB_OFFLINE") else ""
    none = "none cached; fetched on first use, or model.path=<local folder>"
    return offline + (f"cached: {', '.join(models)}" if models else none)
