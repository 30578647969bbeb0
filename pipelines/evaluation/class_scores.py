"""What a classifier makes of a collection: inception score and divergence of classes, from logits.

Logits are `(clips, classes)` arrays. The names are of [Salimans et al. 2016](https://arxiv.org/abs/1606.03498) and, for
audio with a reference clip for each prompt, of [Kreuk et al. 2022](https://arxiv.org/abs/2209.15352).
"""

import numpy as np
from scipy.special import log_softmax


def inception_score(logits: np.ndarray) -> float:
    """How sure the classes of clips are and how many of them there are: 1 at worst, the number of classes at best."""
    log_probabilities = log_softmax(logits, axis=1)
    marginal = np.exp(log_probabilities).mean(axis=0)
    return float(np.exp(_divergences(log_probabilities, np.log(marginal + 1e-300)[None]).mean()))


def class_divergences(logits: np.ndarray, reference_logits: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of each clip's classes from those of its reference clip, in nats: `(clips,)`."""
    if logits.shape != reference_logits.shape:
        raise ValueError(
            f"`logits` and `reference_logits` must be of the same clips, got {logits.shape} and "
            f"{reference_logits.shape}."
        )
    return _divergences(log_softmax(reference_logits, axis=1), log_softmax(logits, axis=1))


def _divergences(log_truth: np.ndarray, log_model: np.ndarray) -> np.ndarray:
    truth = np.exp(log_truth)
    return np.where(truth > 0, truth * (log_truth - log_model), 0.0).sum(axis=1)
