"""`qrun reproduce` on random weights of the true shape, and the memory of training one site, line by line.

    python scripts/rehearse.py smollm2                       every command to its end, tiny steps, about half an hour
    python scripts/rehearse.py llama --layers 2              so many layers as fit
    python scripts/rehearse.py llama --memory 1,2,4,6        peak memory over layers, and the line through it at 32
    python scripts/rehearse.py llama --memory 1,2,4,6 --quantization nf4

The tokenizer is nano's and the text is pydoc, so the perplexities mean nothing; `reproduce` says so itself.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

import qrun
from qrun.config.compose import compose
from qrun.recipes.sizes import GIB, size

TINY = (
    "model.shape=null",  # a folder of fewer layers is another model
    "data=pydoc", "training.steps=2", "training.context=32", "training.batch=1", "training.accumulation=1",
    "training.warmup=1", "training.eval_tokens=100", "protocol.ctx=128", "evaluation.sample=passages",
    "evaluation.max_tokens=300", "evaluation.resamples=99", "evaluation.batch=4", "study.dims=[4]", "study.seeds=[0]",
    "study.sites=[one]", "study.rates=[1e-3]", "study.readout_rates=[1e-3]", "questions=continuation",
    "questions.limit=2", "trials=1", "temperatures=[1.0]", "launcher.workers=1",
)  # fmt: skip
OWN = {
    "llama": ("adapter.layers=last",),
    "smollm2": (
        "original.shape=null",
        "study.ratios=[0.75]", "study.czs=[2]", "study.cuts=[2]", "study.others=[]", "study.wide=[]",
        "study.ways=[qiskit/sqrt/input,line/calibrated/input]", "study.noises=[heron_r2]", "study.beside=[]",
        "study.nulls=[zero]",
    ),
}  # fmt: skip
TRAIN = (
    "model.shape=null", "experiment=llama_v_proj",
    "data=pydoc", "training.eval_tokens=300", "protocol.ctx=256", "evaluation.batch=1",
    "evaluation.sample=passages", "evaluation.max_tokens=512", "cache.gib=0",
)  # fmt: skip


def make(name: str, layers: int | None, folder: Path) -> Path:
    """Random weights of a model's stated shape, in its type, with nano's tokenizer; made once."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = compose("perplexity", [f"model={name}"]).model
    shape = asdict(config.shape)
    shape["num_hidden_layers"] = layers or shape["num_hidden_layers"]
    out = folder / f"{name}-{shape['num_hidden_layers']}"
    if not (out / "tokenizer.json").is_file():
        torch.manual_seed(0)
        torch.set_default_dtype(getattr(torch, config.dtype.value))
        LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(
            out, max_shard_size="2GB"
        )
        AutoTokenizer.from_pretrained(Path(qrun.__file__).parent / "language" / "nano").save_pretrained(out)
    return out


def train_once(words: list[str]) -> None:
    """One step and one evaluation as `qrun train` makes them; prints measured and predicted peak memory in GiB."""
    import torch

    from qrun.cells.workspace import Workspace
    from qrun.recipes.fitting import prepared
    from qrun.recipes.measuring import measured
    from qrun.recipes.record import peak_memory_mb
    from qrun.training.loop import optimizer_step

    config = compose("train", words)
    with prepared(config, Workspace()) as job:
        opened, parameters = job.opened, list(job.adapter.tensors().values())
        optimizer = torch.optim.AdamW(parameters, lr=config.training.lr)
        model, training = opened.language.model, config.training
        row = optimizer_step(model, job.windows, optimizer, parameters, training, 0, 0, None, job.trunk)
        perplexity = measured("evaluation", opened, config, job.adapter).perplexity
        expected = size(config, opened.language.shape).memory / GIB
    found = {"loss": row["loss"], "perplexity": perplexity, "measured": peak_memory_mb() / 2**10, "expected": expected}
    print(json.dumps(found))


def memory(name: str, counts: list[int], folder: Path, words: list[str]) -> None:
    """Peak memory of training v_proj of the middle layer, over layers, each in a process of its own."""
    whole = compose("perplexity", [f"model={name}"]).model.shape.num_hidden_layers
    found = []
    for count in counts:
        own = [*TRAIN, f"model.path={make(name, count, folder)}", f"adapter.layers={count // 2}", *words]
        once = [sys.executable, __file__, "--once", *own]
        out = subprocess.run(once, stdout=subprocess.PIPE, text=True, check=True).stdout
        row = json.loads(out.splitlines()[-1])
        found.append(row["measured"])
        print(f"{count} layers: {row['measured']:.2f} GiB, sizes.py says {row['expected']:.2f}; loss {row['loss']:.2f}")
    slope, start = np.polyfit(counts, found, 1)
    print(f"{start:.2f} GiB + {slope:.3f} a layer: {start + slope * whole:.1f} GiB at {whole} layers")


def main() -> None:
    if sys.argv[1:2] == ["--once"]:
        train_once(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["smollm2", "llama"])
    parser.add_argument("--layers", type=int, help="of the random model; by default all")
    parser.add_argument("--memory", help="numbers of layers, 1,2,4: measure memory instead")
    parser.add_argument("--quantization", default="null", choices=["null", "nf4", "int8"])
    parser.add_argument("--context", type=int, default=256, help="tokens of a training window of --memory")
    parser.add_argument("--folder", type=Path, default=Path("rehearsal"), help="of models and results")
    given = parser.parse_args()
    if given.memory:
        words = [f"model.quantization={given.quantization}", f"training.context={given.context}"]
        memory(given.model, [int(count) for count in given.memory.split(",")], given.folder, words)
    else:
        path = make(given.model, given.layers, given.folder)
        words = [*TINY, *OWN[given.model], f"results={given.folder / f'results-{path.name}'}"]
        command = ["-m", "qrun", "reproduce", f"reproduce={given.model}", f"model.path={path}", *words]
        sys.exit(subprocess.run([sys.executable, *command], check=False).returncode)


if __name__ == "__main__":
    main()
