"""What a number needs beside it: code, packages, machine. Never the environment's variables, which hold tokens."""

import os
import platform
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from qrun.errors import redacted

PACKAGES = (
    "qrun-adapters", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy", "scipy", "numba",
    "hydra-core", "omegaconf", "typer", "rich", "mlflow", "pennylane", "pennylane-lightning", "pennylane-qiskit",
    "qiskit", "qiskit-aer", "qiskit-ibm-runtime", "peft", "bitsandbytes", "lm_eval",
)  # fmt: skip


@cache
def packages() -> dict[str, str]:
    """Versions of the packages that can change a result; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> dict[str, str]:
    """Commit and dirty flag of the checkout that holds this package, when it was first asked: later commits are not of
    the code in memory. 'unknown' for an installed package."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        own = (root / "pyproject.toml").is_file() and git("rev-parse", "HEAD")
    except OSError:  # no git on this machine
        own = None
    if not own:
        return {"git_sha": "unknown", "git_dirty": "unknown"}
    return {"git_sha": own, "git_dirty": str(bool(git("status", "--porcelain"))).lower()}


def process() -> str:
    """This process, `host:pid:seconds from the machine's start to its own`: no clock that jumps is in it."""
    return f"{socket.gethostname()}:{os.getpid()}:{_age(os.getpid()):.0f}"


def ended(word: str) -> bool:
    """Whether a process of this machine, as `process` named it, is gone; of other machines nothing is known."""
    host, *numbers = word.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        pid, start = map(int, numbers)
        return abs(_age(pid) - start) > 2  # rounded twice
    except psutil.AccessDenied:
        return False
    except (psutil.NoSuchProcess, ValueError):
        return True


def _age(pid: int) -> float:
    found = psutil.Process(pid)
    if found.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(pid)
    return found.create_time() - psutil.boot_time()


def environment() -> dict[str, Any]:
    """Everything of env.json."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "command": ["qrun", *map(redacted, sys.argv[1:])], **git_state(), "python": platform.python_version(),
        "platform": platform.platform(), "processor": platform.machine(), "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(), "gpu": gpu, "packages": packages(),
    }  # fmt: skip
