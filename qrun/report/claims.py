"""The paper's claims, as far as they are known, and the experiment that would test each at the paper's own scale."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """`command` runs the claim on the paper's model; it needs hub weights, a GPU or an IBM account, as `needs` says."""

    text: str
    paper: str
    command: str
    needs: str


CLAIMS = {
    "gain": Claim(
        "6,144 trained parameters in one projection improve perplexity.", "Llama 3.1 8B: 8.877 to 8.752, -1.4 %",
        "qrun train experiment=llama_v_proj", "gated hub weights, one GPU",
    ),
    "oft": Claim(
        "(Ours.) Without noise the adapter is orthogonal fine-tuning.", "not compared with OFT",
        "qrun sweep controls experiment=smollm2_controls", "hub weights, one GPU",
    ),
    "efficiency": Claim(
        "Its gain per parameter is unmatched by classical low-rank "
"methods.", "stated second-hand, no LoRA number known",
        "qrun sweep controls experiment=smollm2_controls", "hub weights, one GPU",
    ),
    "monotone": Claim(
        "Perplexity improves monotonically with block dimension.", "SmolLM2-135M: monotone, no numbers known",
        "qrun sweep dim experiment=smollm2_dim", "hub weights, one GPU",
    ),
    "penalty2": Claim(
        "Device noise costs two-qubit blocks almost nothing.", "Llama: +0.007 perplexity, 0.08 %",
        "qrun sweep noise experiment=llama_noise", "gated hub weights, one GPU",
    ),
    "penalty3_fold": Claim(
        "With three-qubit blocks noise raises perplexity 35-fold.", "x 35 (one reading)",
        "qrun sweep noise experiment=smollm2_noise", "hub weights, one GPU",
    ),
    "penalty3_percent": Claim(
        "With three-qubit blocks noise costs 35 times what it costs two.", "2.8 % (the other reading)",
        "qrun sweep noise experiment=llama_noise", "gated hub weights, one GPU",
    ),
    "transition": Claim(
        "There is a sharp noise-expressivity phase transition.", "stated, no sweep known",
        "qrun sweep noise experiment=smollm2_noise", "hub weights, one GPU",
    ),
    "recovery": Claim(
        "Adapters recover most of what compression costs.", "SmolLM2-135M: 83 %",
        "qrun recover experiment=smollm2_recover", "hub weights, one GPU",
    ),
    "both_fail": Claim(
        "The adapter answers questions that both classical baselines fail.", "SmolLM2-135M: some, number unknown",
        "qrun eval questions experiment=smollm2_questions adapter.path=<from recover>", "hub weights, one GPU",
    ),
    "two_questions": Claim(
        "The adapter corrects the answers to two MMLU questions.",
        "Llama: jovian rings 25-35 % to 60-90 % right; gene flow wrong to right",
        "qrun eval questions experiment=llama_questions adapter.path=<from train>", "gated hub weights, one GPU",
    ),
    "schmidt": Claim(
        "Trained blocks are entangling.", "effective bond dimension and entropy ratios, values unknown",
        "qrun sweep dim experiment=smollm2_dim", "hub weights, one GPU",
    ),
    "hardware": Claim(
        "A sequence runs on 156 qubits.",
        "1,328 circuits, 4 h 24 min on "
"ibm_basquecountry", "qrun plan experiment=llama_qpu", "an IBM account to run, nothing to plan",
    ),
}  # fmt: skip
