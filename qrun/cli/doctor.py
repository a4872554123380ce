"""`qrun doctor`: what works on this machine, and what is missing for the rest. Asks nobody but a store at
MLFLOW_TRACKING_URI.

qrun doctor                                      the machine; torch is not imported
qrun doctor experiment=llama_v_proj              what this training takes: files, memory, disk, time, before it loads
qrun doctor model=local model.path=/models/mine training.batch=2
"""

import os
import platform
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage, which

import psutil

from qrun.config.compose import compose
from qrun.config.schema import ModelConfig
from qrun.config.verbs import TrainConfig
from qrun.errors import InputError
from qrun.language.docstrings import standard_library
from qrun.language.identity import weight_files
from qrun.language.models import check_model, local_folder
from qrun.recipes.sizes import GIB, SHARE, Size, size, speed
from qrun.report.screen import listing
from qrun.tracking.provenance import git_state, packages
from qrun.tracking.store import Store

ANSWER_S = 20  # that nvidia-smi may take: it waits for a driver that hangs


def doctor(results: str, tracking_uri: str | None = None, words: list[str] | None = None) -> None:
    """Print one line per thing that a command may need; with the words of a training what that takes."""
    if words:
        listing(["what", "state"], [[what, state] for what, state in training(compose("train", words)).items()])
        return
    found = {**packages()}
    own, commit = found.pop("qrun-adapters", "not installed"), git_state()["git_sha"][:12]
    topics = (standard_library() / "pydoc_data").is_dir()
    hub, ibm, ray = os.environ.get("HF_TOKEN"), os.environ.get("QISKIT_IBM_TOKEN"), find_spec("ray")
    no_topics = "this Python has no pydoc_data; install the full standard library"
    no_hub = "set HF_TOKEN after accepting the licence on the hub, or give model.path="
    no_ibm = "set QISKIT_IBM_TOKEN (and QISKIT_IBM_INSTANCE); device=fake needs none"
    no_client = "pip install 'qrun-adapters[ibm]', also for device=fake"
    account = "QISKIT_IBM_TOKEN is set" if ibm else no_ibm
    no_ray = "pip install 'qrun-adapters[ray]'; launcher=local needs nothing"
    slurm = "submitit and SLURM" if which("sbatch") else "submitit is installed; no SLURM here (sbatch)"
    memory, gpus = psutil.virtual_memory(), graphics()
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    states = {
        "qrun": f"{own}, commit {commit}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {number}" for name, number in found.items()),
        "processor": f"{os.cpu_count()} cores, threads (OMP_NUM_THREADS): {threads}",
        "memory": f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} free",
        "GPU": ", ".join(gpus) or "none; models and circuits run on the processor",
        "store": _store(results, tracking_uri),
        "model=nano, data=pydoc": "ready" if topics else no_topics,
        "hub models": _hub(),
        "llama (gated)": "HF_TOKEN is set" if hub else no_hub,
        "model.quantization": _extra("bitsandbytes", "quantized"),
        "device=ibm": account if find_spec("qiskit_ibm_runtime") else no_client,
        "launcher=ray": "ray is installed" if ray else no_ray,
        "launcher=submitit": slurm if find_spec("submitit") else "pip install 'qrun-adapters[slurm]'",
    }
    listing(["what", "state"], [[what, state] for what, state in states.items()])


def graphics() -> list[str]:
    """GPUs as their driver names them, and why torch would not use them."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ["Apple's (model.device=mps)"]
    if which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except (subprocess.TimeoutExpired, OSError) as error:
        slow = isinstance(error, subprocess.TimeoutExpired)
        return [f"unknown: nvidia-smi {f'does not answer in {ANSWER_S} s' if slow else f'does not run ({error})'}"]
    unused = " (this torch is a CPU build)" if packages().get("torch", "").endswith("+cpu") else ""
    return [line.strip() + unused for line in done.stdout.splitlines() if done.returncode == 0 and line.strip()]


def training(config: TrainConfig) -> dict[str, str]:
    """What a training and its measurements take, line by line; nothing is loaded. Raises InputError for a model whose
    shape is not known, for files that are missing or wrong, and for sites that the model does not have."""
    shape = check_model(config.model)
    if shape is None:
        raise InputError(f"model={config.model.name}: its shape is not stated; give model.path=<local folder>")
    found, model, steps = size(config, shape), config.model, config.training.steps
    ctx = min(config.protocol.ctx or shape.max_position_embeddings, config.evaluation.max_tokens or 10**9)
    kind = f"{model.dtype.value}{f', projections in {model.quantization.value}' if model.quantization else ''}"
    files = model_files(model, found)
    rate = SHARE * speed(model, shape)
    step, measured = found.step_flop / rate, found.evaluation_flop / rate
    where, room = free(model)
    whole, peak = steps * step + 2 * measured, found.memory / GIB
    return {
        "model": f"{model.name}: {found.parameters:,} parameters, {shape.num_hidden_layers} layers, {kind}",
        "files": files,
        "weights": f"{found.weights / GIB:.2f} GiB",
        "adapter": f"{found.trained:,} parameters; with AdamW's state {found.optimiser / 2**20:,.1f} MiB",
        "a step": f"{config.training.batch} x {config.training.context} tokens: {found.step / GIB:.2f} GiB kept",
        "an evaluation": f"{config.evaluation.batch} x {ctx:,} tokens: {found.evaluation / GIB:.2f} GiB",
        "memory at the peak": f"{peak:.1f} GiB; {where}: {room / GIB:.1f} free. {advice(found, room)}",
        "kept hidden states": f"{found.trunk / GIB:.2f} GiB on disk, {disk_usage(Path.home()).free / GIB:.0f} free",
        "arithmetic": f"{rate / SHARE / 1e9:,.0f} GFLOP/s in a wide product, measured now; half of it in whole steps",
        "time": f"about {step:,.1f} s a step, {measured / 60:,.1f} min an evaluation, {whole / 60:,.0f} min in all",
    }


def free(model: ModelConfig) -> tuple[str, int]:
    """The memory that the model would go to, and how much of it is free."""
    import torch

    from qrun.language.models import device_of

    device = device_of(model.device)
    if not device.startswith("cuda"):
        return "of the processor", psutil.virtual_memory().available
    spread = model.device_map is not None
    chosen = list(range(torch.cuda.device_count())) if spread else [torch.device(device).index or 0]
    names = ", ".join(torch.cuda.get_device_name(number) for number in chosen)
    return names, sum(torch.cuda.mem_get_info(number)[0] for number in chosen)


def advice(found: Size, room: int) -> str:
    """Whether it fits, and else what would make it smaller, the largest part first."""
    if found.memory <= room:
        return "It fits"
    parts = {
        found.weights: "model.dtype=bfloat16, model.quantization=nf4, or model.device_map=auto over several GPUs",
        found.step: "training.gradient_checkpointing=true, or a smaller training.batch",
        found.evaluation: "a smaller protocol.ctx or evaluation.batch",
        found.optimiser: "fewer sites (adapter=paper), or a smaller adapter.dim",
    }
    return f"It does not fit: {parts[max(parts)]}"


def model_files(model: ModelConfig, found: Size) -> str:
    """Where the model's files are. Raises InputError for a model that the hub's cache has only a part of; a local
    folder has been checked."""
    folder = local_folder(model)
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        kept = try_to_load_from_cache(str(model.hub_id), "config.json", revision=model.revision)
        if not isinstance(kept, str):
            token = "" if os.environ.get("HF_TOKEN") or not model.gated else ", with HF_TOKEN and an accepted licence"
            size = f"{2 * found.parameters / 1e9:.1f} GB"
            return f"not on this machine; {size} from {model.hub_id} at first use{token}, or model.path=<local folder>"
        folder = Path(kept).parent
        check_model(replace(model, path=str(folder)))
    files = weight_files(folder)
    there = sum(file.stat().st_size for file in files)
    return f"{folder}: {len(files)} of weights, {there / 1e9:.1f} GB"


def _extra(package: str, extra: str) -> str:
    return f"{package} is installed" if find_spec(package) else f"pip install 'qrun-adapters[{extra}]'"


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
