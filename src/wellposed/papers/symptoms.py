"""Symptoms: what goes wrong, in the words of the people to whom it happens. Every row of the catalogue names some."""

from __future__ import annotations

from typing import NamedTuple


class Symptom(NamedTuple):
    """What somebody sees, and how others say it."""

    sentence: str
    words: tuple[str, ...]


SYMPTOMS = {
    "overfits": Symptom(
        "My model fits the training data but not new data.",
        ("overfitting", "small data", "little data", "few samples", "generalization gap", "regularization"),
    ),
    "wrong-labels": Symptom(
        "My labels are wrong.",
        ("noisy labels", "label noise", "mislabelled examples", "annotation errors", "corrupted labels"),
    ),
    "few-labels": Symptom(
        "I have few labels.",
        ("semi-supervised", "weakly supervised", "partial labels", "few-shot", "unlabelled data", "annotation cost"),
    ),
    "no-labels": Symptom(
        "I have no labels and want good features.",
        ("self-supervised", "unsupervised", "pretraining", "representation learning", "contrastive", "clustering"),
    ),
    "imbalance": Symptom(
        "Some of my classes are rare.",
        ("class imbalance", "imbalanced data", "long-tailed", "minority class", "rare values", "dominant modality"),
    ),
    "shortcuts": Symptom(
        "My model relies on the wrong cues.",
        ("spurious correlations", "shortcut learning", "dataset bias", "fairness", "protected attributes"),
    ),
    "over-confident": Symptom(
        "My model is sure even when it is wrong.",
        ("overconfidence", "calibration", "miscalibrated probabilities", "uncertainty", "abstention"),
    ),
    "shift": Symptom(
        "My model breaks when the data change.",
        ("distribution shift", "domain shift", "out-of-distribution", "corruptions", "test-time adaptation",
         "domain generalization", "deployment"),
    ),
    "attack": Symptom(
        "Tiny changes of the input fool my model.",
        ("adversarial examples", "adversarial attack", "adversarial robustness", "certified robustness",
         "catastrophic overfitting"),
    ),
    "leaks": Symptom(
        "My model gives away its training data.",
        ("privacy", "memorization of training data", "unlearning", "right to be forgotten", "private inference",
         "gradient inversion"),
    ),
    "forgets": Symptom(
        "My model forgets what it knew.",
        ("catastrophic forgetting", "continual learning", "incremental learning", "lifelong learning", "rehearsal"),
    ),
    "plasticity": Symptom(
        "My model stops learning.",
        ("loss of plasticity", "lost trainability", "many tasks in a row", "dead units", "late learning"),
    ),
    "costly-fine-tuning": Symptom(
        "Fine-tuning a large model takes too much memory or spoils it.",
        ("parameter-efficient fine-tuning", "PEFT", "adapters", "LoRA", "prompt tuning"),
    ),
    "unstable": Symptom(
        "Training diverges or never gets going.",
        ("instability", "exploding gradients", "vanishing gradients", "initialization", "very deep networks",
         "loss spikes", "NaN"),
    ),
    "slow-training": Symptom(
        "Training takes too long.",
        ("slow convergence", "ill-conditioned loss", "second-order optimizer", "compute budget", "efficient training"),
    ),
    "tuning": Symptom(
        "I do not know which settings to use.",
        ("hyper-parameters", "learning rate", "regularization strength", "architecture search", "no validation data"),
    ),
    "conflict": Symptom(
        "My losses work against each other.",
        ("conflicting gradients", "multi-task", "multi-objective", "loss balancing"),
    ),
    "collapses": Symptom(
        "My representations or samples collapse.",
        ("dimensional collapse", "representation collapse", "mode collapse", "rank collapse", "posterior collapse",
         "model collapse"),
    ),
    "too-big": Symptom(
        "My model is too big or too slow to use.",
        ("pruning", "sparsity", "compression", "low rank", "distillation", "smaller model", "inference cost"),
    ),
    "low-precision": Symptom(
        "My model gets worse when I quantise it.",
        ("quantization", "low bit width", "4-bit", "8-bit", "integer weights", "outlier channels"),
    ),
    "poor-samples": Symptom(
        "My generator's samples are poor.",
        ("generation quality", "sample quality", "blurry samples", "artefacts", "exposure bias", "FID"),
    ),
    "slow-sampling": Symptom(
        "Sampling takes too many steps.",
        ("slow diffusion sampling", "few-step generation", "function evaluations", "inference acceleration"),
    ),
    "uncontrolled": Symptom(
        "I cannot steer what is generated.",
        ("controllable generation", "editing", "guidance", "disentanglement", "personalization"),
    ),
    "hallucinates": Symptom(
        "My language model makes things up.",
        ("hallucination", "degenerate text", "repetition", "wrong reasoning", "self-correction"),
    ),
    "reward-hacking": Symptom(
        "My model games its reward.",
        ("overoptimization", "reward model", "preference optimization", "RLHF", "alignment", "DPO"),
    ),
    "exploration": Symptom(
        "My policy stops exploring or learns unreliably.",
        ("reinforcement learning", "entropy collapse of a policy", "offline RL", "value errors", "regret"),
    ),
    "ill-posed": Symptom(
        "I must recover a signal from incomplete or noisy measurements.",
        ("inverse problem", "denoising", "deblurring", "super-resolution", "inpainting", "reconstruction",
         "no clean targets", "missing data"),
    ),
    "transport": Symptom(
        "I must move one distribution onto another.",
        ("optimal transport", "Wasserstein", "Sinkhorn", "unpaired data", "transport map"),
    ),
    "physics": Symptom(
        "My model breaks the laws that my data obey.",
        ("physics-informed", "conservation laws", "differential equations", "symmetry", "equivariance",
         "dynamical systems", "surrogate of a simulation"),
    ),
    "information": Symptom(
        "I need to measure how much one thing tells about another.",
        ("mutual information", "entropy estimation", "dependence", "information bottleneck"),
    ),
    "opaque": Symptom(
        "I cannot tell why my model decides as it does.",
        ("interpretability", "explanation", "attribution", "feature importance", "saliency"),
    ),
    "generalization": Symptom(
        "I do not understand why or when it generalises.",
        ("generalization theory", "bounds", "double descent", "grokking", "implicit regularization", "loss landscape"),
    ),
}  # fmt: skip
"""By key, in the order of an index for people: data, robustness, training, size, generation, decisions, science."""
