"""Classes without a classifier: how similar a CLAP finds a clip to the name of each class."""

from __future__ import annotations

import numpy as np

from whisq.clap import Clap


# What General MIDI can play, in words, and so what the embedded models know.
CLASSES = (
    "solo piano",
    "electric piano",
    "harpsichord",
    "church organ",
    "acoustic guitar",
    "distorted electric guitar",
    "string quartet",
    "orchestra",
    "solo cello",
    "harp",
    "choir",
    "flute",
    "saxophone",
    "trumpet and brass",
    "jazz trio",
    "blues",
    "rock band",
    "heavy metal",
    "funk",
    "reggae",
    "bossa nova",
    "folk song",
    "techno",
    "house",
    "hip hop beat",
    "ambient pads",
    "synthwave",
    "march",
    "waltz",
    "drums alone",
)
TEMPERATURE = 0.05  # about what CLAP models are trained with


def class_logits(clap: Clap, embeddings: np.ndarray, classes: tuple[str, ...] = CLASSES) -> np.ndarray:
    """Cosine similarity of clips to classes, divided by `TEMPERATURE`.

    Args:
        clap: The model that `embeddings` come from.
        embeddings: Clips as unit vectors `(clips, size)`.
        classes: A short description of each class.

    Returns:
        Logits `(clips, classes)`.
    """
    return embeddings @ clap.embed_text(classes).T.astype(np.float64) / TEMPERATURE
