"""What the nearest neighbours of clips say: precision, recall, density, coverage, and whether training clips come back.

Embeddings are `(clips, size)` arrays. Precision and recall are of
[Kynkäänniemi et al. 2019](https://arxiv.org/abs/1904.06991), density and coverage of
[Naeem et al. 2020](https://arxiv.org/abs/2002.09797).
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist


NUM_NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Each figure as a value for each clip, whose mean it is.

    Args:
        precision: For each clip, whether it lies in the neighbourhood of a reference clip.
        density: For each clip, in how many such neighbourhoods it lies, divided by the number of neighbours.
        recall: For each reference clip, whether it lies in the neighbourhood of a clip.
        coverage: For each reference clip, whether its neighbourhood holds a clip.
    """

    precision: np.ndarray
    density: np.ndarray
    recall: np.ndarray
    coverage: np.ndarray


def measure_neighbourhood(
    embeddings: np.ndarray, reference: np.ndarray, *, num_neighbours: int = NUM_NEIGHBOURS
) -> Neighbourhood:
    """Compares two collections by neighbourhoods, balls that reach to the k-th nearest clip of the same collection.

    Args:
        embeddings: The collection to judge.
        reference: What it should be like.
        num_neighbours: The k.

    Raises:
        ValueError: A collection has no more clips than `num_neighbours`.
    """
    for name, side in (("embeddings", embeddings), ("reference", reference)):
        if len(side) <= num_neighbours:
            raise ValueError(f"`{name}` must hold more than {num_neighbours} clips, got {len(side)}.")
    radii, reference_radii = _radii(embeddings, num_neighbours), _radii(reference, num_neighbours)
    distances = cdist(reference, embeddings)  # (reference clips, clips)
    is_inside = distances < reference_radii[:, None]
    return Neighbourhood(
        precision=is_inside.any(axis=0).astype(float),
        density=is_inside.sum(axis=0) / num_neighbours,
        recall=(distances < radii[None]).any(axis=1).astype(float),
        coverage=(distances.min(axis=1) < reference_radii).astype(float),
    )


def _radii(embeddings: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Distance of each clip to its k-th nearest other one, `(clips,)`."""
    return np.partition(cdist(embeddings, embeddings), num_neighbours, axis=1)[:, num_neighbours]


def nearest(embeddings: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the most similar training clip of each clip.

    Returns:
        Its cosine similarity `(clips,)` and its number `(clips,)`.
    """
    similarities = _unit(embeddings) @ _unit(training).T
    best = similarities.argmax(axis=1)
    return similarities[np.arange(len(embeddings)), best], best


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
