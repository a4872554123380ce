"""The paper's claims as far as they are known, the margin of each, and the command for the paper's own scale."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """`margin` is what studies/<study>.py grades by, if one does; `command` runs the claim on the paper's model, with
    `needs`."""

    text: str
    paper: str
    margin: str
    command: str
    needs: str


GATED, HUB = "gated hub weights, one GPU", "hub weights, one GPU"
CLAIMS = {
    "gain": Claim(
        "6,144 trained parameters in one projection improve perplexity.", "Llama 3.1 8B: 8.877 to 8.752, -1.4 %",
        "the gain's interval over seeds and documents lies above 0", "qrun train experiment=llama_v_proj", GATED,
    ),
    "oft": Claim(
        "(Ours.) Without noise the adapter is orthogonal fine-tuning.", "not compared with OFT",
        "trained OFT within 1e-4 of the adapter's perplexity", "qrun sweep controls experiment=smollm2_controls", HUB,
    ),
    "efficiency": Claim(
        "Its gain per parameter is unmatched by classical low-rank methods.",
        "stated second-hand, no LoRA number known",
        "gain per parameter above LoRA's, paired over seeds and documents, at all site sets",
        "qrun sweep controls experiment=smollm2_controls", HUB,
    ),
    "monotone": Claim(
        "Perplexity improves monotonically with block dimension.", "SmolLM2-135M: monotone, no numbers known",
        "every neighbouring pair of dimensions gains, paired over seeds and documents",
        "qrun sweep dim experiment=smollm2_dim", HUB,
    ),
    "penalty2": Claim(
        "Device noise costs two-qubit blocks almost nothing.", "Llama: +0.007 perplexity, 0.08 %",
        "at most 0.16 % of perplexity at one site", "qrun sweep noise experiment=llama_noise", GATED,
    ),
    "penalty3_fold": Claim(
        "With three-qubit blocks noise raises perplexity 35-fold.", "x 35 (one reading)",
        "x 17.5 to 70 at all sites", "qrun sweep noise experiment=smollm2_noise", HUB,
    ),
    "penalty3_percent": Claim(
        "With three-qubit blocks noise costs 35 times what it costs two.", "2.8 % (the other reading)",
        "1.4 to 5.6 % at one site", "qrun sweep noise experiment=llama_noise", GATED,
    ),
    "proportion": Claim(
        "(Ours.) What a device costs grows in proportion to the number of adapted sites.", "one site only",
        "b = 4, the paper's readout: penalty in nats as N^a with a in [0.75, 1.25]",
        "qrun sweep sites experiment=smollm2_sites", HUB,
    ),
    "equal_parameters": Claim(
        "(Ours.) At equal parameters the adapter gains more than LoRA.", "not compared at equal parameters",
        "the gain less LoRA's above 0, over seeds and documents, wherever counts are within 1.1 x",
        "qrun sweep frontier experiment=smollm2_frontier", HUB,
    ),
    "transition": Claim(
        "There is a sharp noise-expressivity phase transition.", "stated, no sweep known",
        "every curve ends within 0.48 decades, half of what proportional damage takes",
        "qrun sweep noise experiment=smollm2_noise", HUB,
    ),
    "scales": Claim(
        "There is a concrete path to quantum utility at larger qubit scales.", "stated, no number known",
        "the paper's readout keeps a gain at b = 8 or more, all sites", "qrun sweep wall experiment=smollm2_wall", HUB,
    ),
    "wall": Claim(
        "(Ours.) The noise wall at three qubits is the estimator's.", "counts used as they are",
        "b = 8, all sites: the paper's readout keeps nothing of the gain, a calibrated one 40 % or more",
        "qrun sweep wall experiment=smollm2_wall", HUB,
    ),
    "size": Claim(
        "(Ours.) The gain of one adapted projection does not fall with the size of the model.",
        "two models, 135M and 8B",
        "v_proj of the last layer, b = 4: the slope of the gain in percent over log10(parameters) at or above 0",
        "qrun train experiment=llama_v_proj", GATED,
    ),
    "few_cz": Claim(
        "(Ours.) Blocks trained as circuits of 6 CZ keep most of the gain.", "blocks of b = 8 as 14 CZ or more",
        "b = 8, all sites: 60 % or more of the Cayley blocks' gain",
        "qrun sweep circuits experiment=smollm2_circuits", HUB,
    ),
    "recovery": Claim(
        "Adapters recover most of what compression costs.", "SmolLM2-135M: 83 %",
        "73 % or more on the model's own kind of text", "qrun recover experiment=smollm2_recover", HUB,
    ),
    "both_fail": Claim(
        "The adapter answers questions that both classical baselines fail.", "SmolLM2-135M: some, number unknown",
        "more of its changed answers to failed questions are right than if they fell evenly on the other choices",
        "qrun eval questions experiment=smollm2_questions adapter.path=<from recover>", HUB,
    ),
    "two_questions": Claim(
        "The adapter corrects the answers to two MMLU questions.",
        "Llama: jovian rings 25-35 % to 60-90 % right; gene flow wrong to right", "not graded here",
        "qrun eval questions experiment=llama_questions adapter.path=<from train>", GATED,
    ),
    "schmidt": Claim(
        "Trained blocks are entangling.", "effective bond dimension and entropy ratios, values unknown",
        "no value known",
        "qrun sweep dim experiment=smollm2_dim", HUB,
    ),
    "hardware": Claim(
        "A sequence runs on 156 qubits.", "1,328 circuits, 4 h 24 min on ibm_basquecountry", "not graded here",
        "qrun plan experiment=llama_qpu", "an IBM account to run, nothing to plan",
    ),
}  # fmt: skip
