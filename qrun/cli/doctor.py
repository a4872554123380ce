"""`qrun doctor`: what works on this machine, and what is missing for the rest. Touches no network."""

import os
import platform
from importlib.util import find_spec
from pathlib import Path

from qrun.errors import InputError
from qrun.language.docstrings import standard_library
from qrun.report.screen import listing
from qrun.tracking.provenance import git_state, packages
from qrun.tracking.store import Store


def doctor(results: str) -> None:
    """Print one line per thing that a command may need."""
    import torch
    from numba import get_num_threads

    found = packages()
    gpu = (
        torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; models and circuits run on the processor"
    )
    rows = [
        [
            "qrun",
            f"{found.get('qrun-adapters', 'not installed')}, commit {git_state()['git_sha'][:12]}, Python "
            f"{platform.python_version()}",
        ],
        ["packages", ", ".join(f"{name} {number}" for name, number in found.items() if name != "qrun-adapters")],
        [
            "processor",
            f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads, the simulator {get_num_threads()}",
        ],
        ["GPU", gpu],
        ["store", _store(results)],
        [
            "model=nano, data=pydoc",
            "ready"
            if (standard_library() / "pydoc_data").is_dir()
            else "this Python has no pydoc_data; install the full standard library",
        ],
        ["hub models", _hub()],
        [
            "llama (gated)",
            "HF_TOKEN is set"
            if os.environ.get("HF_TOKEN")
            else "set HF_TOKEN after accepting the licence on the hub, or give model.path=",
        ],
        [
            "device=ibm",
            "QISKIT_IBM_TOKEN is set"
            if os.environ.get("QISKIT_IBM_TOKEN")
            else "set QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE); device=fake needs none",
        ],
        [
            "launcher=ray",
            "ray is installed"
            if find_spec("ray")
            else "pip install 'qrun-adapters[ray]'; launcher=local needs nothing",
        ],
    ]
    listing(["what", "state"], rows)


def _store(results: str) -> str:
    store = Store(results)
    try:
        if not store.folder.exists():
            return f"{store.folder} will be created"
        store.check_writable()
    except InputError as error:
        return str(error)
    return f"{store.database}, writable" if store.database.exists() else f"{store.folder}, writable, no run yet"


def _hub() -> str:
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    models = sorted(p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*"))
    offline = "offline mode is set; " if os.environ.get("HF_HUB_OFFLINE") else ""
    return offline + (
        f"cached: {', '.join(models)}" if models else "none cached; fetched on first use, or model.path=<local folder>"
    )
