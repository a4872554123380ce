"""Pretrain `nano`, the language model that ships with qrun, and the other rungs of its ladder, on documentation found
on this machine.

    python scripts/pretrain_nano.py --tokens 20e6 --out qrun/language/nano
    python scripts/pretrain_nano.py --size small --optimizer adamw --out models/small-adamw     and so on; then, say,
    qrun sweep ladder study.rungs=[models/small-adamw]

A LlamaForCausalLM in SmolLM2's proportions (3 heads x 64 = 192 wide, 1 key/value head, FFN 512, tied embeddings) with
its own byte-level BPE tokenizer, trained on the docstrings of installed scientific packages (`data=libdocs`) and never
on `data=pydoc`, so that an adapter trained on pydoc meets a shifted domain. Muon on the matrices of the layers, AdamW
on embeddings and norms, bfloat16 autocast, 20 million tokens of shuffled windows, 1.3 passes, linear decay to zero.
Writes the model folder (float16 safetensors), training_record.json and grams.xz, the 13-grams that `data.clean` cuts
out of other text. About 40 minutes on two cores.

--size small | nano | large: 0.8, 3.1 and 10.2 million parameters. --optimizer adamw trains all of it by AdamW, which
leaves steeper spectra than Muon. The record says how steep: what a truncated SVD of half the parameters loses of the
projections, beside random matrices of their shapes.
"""

import argparse
import json
import math
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qrun.language.corpus import split_by_hash, text_digest
from qrun.language.docstrings import libdocs_documents, pydoc_documents
from qrun.language.overlap import NANO, all_grams, write_sample

END = "<|endoftext|>"


@dataclass(frozen=True)
class Size:
    """A rung of the ladder, in SmolLM2's proportions: one key/value head, FFN 2.7 times the width."""

    width: int
    heads: int
    ffn: int
    layers: int


SIZES = {"small": Size(96, 3, 256, 4), "nano": Size(192, 3, 512, 6), "large": Size(320, 5, 896, 8)}
LR = {"muon": 0.02, "adamw": 0.003}


def train_tokenizer(documents: list[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, model_max_length=context, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> tuple[torch.Tensor, int]:
    """One stream, each document preceded by the end-of-text token, and the bytes of its text."""
    end = tokenizer.eos_token_id
    ids = [token for row in tokenizer(documents, verbose=False)["input_ids"] for token in (end, *row)]
    return torch.tensor(ids), sum(len(d.encode()) for d in documents)


@torch.no_grad()
def bits_per_byte(model: LlamaForCausalLM, stream: torch.Tensor, characters: int, window: int, limit: int) -> float:
    """Disjoint windows over the first `limit` tokens.

    The first token of each window is not scored and its bytes are not counted.
    """
    total, scored = 0.0, 0
    for start in range(0, min(len(stream), limit) - window, window):
        ids = stream[None, start : start + window]
        total += model(input_ids=ids, labels=ids).loss.item() * (window - 1)
        scored += window - 1
    return total / math.log(2) / (characters * scored / len(stream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=20e6)
    parser.add_argument("--out", type=Path, help="folder of the model")
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--optimizer", choices=LR, default="muon")
    parser.add_argument("--layers", type=int, help="other than the size's")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument("--lr", type=float, help="of Muon 0.02, AdamW beside it takes a fifth; of AdamW alone 0.003")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grams", action="store_true", help="only write grams.xz, of the model in --out")
    args = parser.parse_args()
    if args.out is None:
        parser.error("--out: name a folder, such as models/small-adamw; nano ships from qrun/language/nano")
    size = SIZES[args.size]
    args.layers, args.lr = args.layers or size.layers, args.lr or LR[args.optimizer]

    documents, characters = libdocs_documents()
    libdocs = split_by_hash(documents, validation=0.02, test=0.02)
    if args.grams:
        write_grams(args.out, libdocs["train"])
        return
    pydoc = split_by_hash(pydoc_documents(), validation=0.1, test=0.1)
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(libdocs["train"], args.vocabulary, 1024)
    train, train_bytes = encode(tokenizer, libdocs["train"])
    held_out = {"libdocs": encode(tokenizer, libdocs["validation"]), "pydoc": encode(tokenizer, pydoc["validation"])}
    print(f"{len(train):,} training tokens, {train_bytes / len(train):.2f} bytes each", flush=True)

    config = LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=size.width, intermediate_size=size.ffn, num_hidden_layers=args.layers,
        num_attention_heads=size.heads, num_key_value_heads=1, head_dim=size.width // size.heads,
        max_position_embeddings=1024, rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizers = made(model, args.optimizer)

    windows = (len(train) - 1) // args.context
    generator = torch.Generator().manual_seed(args.seed)
    steps = int(args.tokens // (args.batch * args.context))
    order = torch.cat(
        [torch.randperm(windows, generator=generator) for _ in range(math.ceil(steps * args.batch / windows))]
    )
    compiled = torch.compile(model)
    started, losses, history = time.time(), [], []
    for step in range(steps):
        scale = min((step + 1) / 100, 1.0) * min(
            1.0, 2.0 * (1 - step / steps)
        )  # warm-up, constant, linear decay over the last half
        for optimizer, share in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * share * scale
        starts = order[step * args.batch : (step + 1) * args.batch] * args.context
        ids = torch.stack([train[s : s + args.context] for s in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            rate = (step + 1) * args.batch * args.context / (time.time() - started)
            print(f"step {step + 1}/{steps}  loss {sum(losses[-50:]) / 50:.3f}  {rate:,.0f} tokens/s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            scores = {
                name: bits_per_byte(model, stream, size, args.context, 100_000)
                for name, (stream, size) in held_out.items()
            }
            history.append(
                {
                    "step": step + 1,
                    "tokens": (step + 1) * args.batch * args.context,
                    "loss": sum(losses[-50:]) / 50,
                    **scores,
                }
            )
            print("  validation, bits per byte: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
            save(model, tokenizer, args, history, characters, libdocs, len(train), time.time() - started)


def made(model: LlamaForCausalLM, name: str) -> list[tuple[torch.optim.Optimizer, float]]:
    """The optimizers, each with its share of the learning rate."""
    if name == "adamw":
        return [(torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1), 1.0)]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, weight_decay=0.01, momentum=0.95)
    return [(muon, 1.0), (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0), 0.2)]


@torch.no_grad()
def lost_by_half(model: LlamaForCausalLM) -> dict[str, float]:
    """Relative Frobenius error of all projections cut to the rank of half their parameters: `svd`, and `gaussian` of
    random matrices of the same shapes and norms."""
    generator = torch.Generator().manual_seed(0)
    lost = {"svd": 0.0, "gaussian": 0.0}
    whole = 0.0
    for name, w in model.named_parameters():
        if name.endswith("_proj.weight"):
            rank, norm = w.numel() // (2 * sum(w.shape)), w.square().sum().item()
            whole += norm
            for kind, matrix in (("svd", w), ("gaussian", torch.randn(w.shape, generator=generator))):
                values = torch.linalg.svdvals(matrix.float()).square()
                lost[kind] += norm * (values[rank:].sum() / values.sum()).item()
    return {kind: math.sqrt(value / whole) for kind, value in lost.items()}


def write_grams(out: Path, documents: list[str]) -> None:
    """The sampled 13-grams of the training text beside the model. Only of the very text: with other packages installed
    its digest is another."""
    corpus = json.loads((out / "training_record.json").read_text())["corpus"]
    if (found := text_digest(documents)) != corpus["digest"]:
        installed = ", ".join(f"{package} {version(package)} ({was})" for package, was in corpus["versions"].items())
        raise SystemExit(f"libdocs is {found} here, nano's was {corpus['digest']}; installed (then): {installed}")
    hashes = all_grams(documents)
    kept = write_sample(out / NANO.name, hashes)
    size = (out / NANO.name).stat().st_size
    print(f"{len(hashes):,} different 13-grams, {kept:,} kept, wrong for {kept / 2**32:.1e} of others, {size:,} bytes")


def save(model, tokenizer, args, history, characters, libdocs, train_tokens, seconds) -> None:  # type: ignore[no-untyped-def]
    args.out.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    record = {
        "command": f"python scripts/pretrain_nano.py --size {args.size} --optimizer {args.optimizer} "
        f"--tokens {args.tokens:g} --layers {args.layers} --vocabulary {args.vocabulary} --context {args.context} "
        f"--batch {args.batch} --lr {args.lr:g} --seed {args.seed}",
        "corpus": {
            "name": "libdocs", "split": "train", "documents": len(libdocs["train"]), "tokens": train_tokens,
            "digest": text_digest(libdocs["train"]),
            "characters": characters,
            "versions": {p: version(p) for p in ("numpy", "scipy", "torch", "transformers", "qiskit", "pennylane")},
        },
        "size": args.size, "optimizer": args.optimizer,
        "parameters": sum(p.numel() for p in model.parameters()), "lost_by_half": lost_by_half(model),
        "validation_bits_per_byte": history, "seconds": round(seconds), "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip
    (args.out / "training_record.json").write_text(json.dumps(record, indent=1) + "\n")
    write_grams(args.out, libdocs["train"])


if __name__ == "__main__":
    main()
