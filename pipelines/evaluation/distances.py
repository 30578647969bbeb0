"""How far two collections of clips lie apart in the space of an embedder: Fréchet and kernel audio distance.

Embeddings are `(clips, size)` arrays of float64, one row a clip. The names FAD and KAD are of
[Kilgour et al. 2019](https://arxiv.org/abs/1812.08466) and [Chung et al. 2025](https://arxiv.org/abs/2502.15602),
FAD-infinity of [Gui et al. 2024](https://arxiv.org/abs/2311.01616).
"""

import numpy as np
from scipy.spatial.distance import cdist, pdist


KAD_SCALE = 100.0  # as the kadtk package prints it
NUM_SIZES = 10  # that FAD-infinity is fitted to


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Squared Fréchet distance of two Gaussians.

    Args:
        mean: Mean of the one, `(size,)`.
        covariance: Its covariance, `(size, size)`; may be singular.
        other_mean: Mean of the other.
        other_covariance: Its covariance.
    """
    # The root of the product of two covariances has the singular values of the product of their roots as eigenvalues.
    overlap = np.linalg.svd(_matrix_root(covariance) @ _matrix_root(other_covariance), compute_uv=False).sum()
    difference = mean - other_mean
    return float(difference @ difference + np.trace(covariance) + np.trace(other_covariance) - 2 * overlap)


def _matrix_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    values[values < len(values) * np.finfo(float).eps * values[-1]] = 0  # rounding, where a covariance is singular
    return (vectors * np.sqrt(values)) @ vectors.T


def frechet_audio_distance(embeddings: np.ndarray, reference: np.ndarray) -> float:
    """FAD: the Fréchet distance of the Gaussians that have the means and covariances of two collections.

    It grows as collections shrink: compare figures of equal sizes only, or `frechet_audio_distance_infinity`.
    """
    _check_sizes(embeddings, reference)
    return frechet_distance(embeddings.mean(axis=0), np.cov(embeddings.T), reference.mean(axis=0), np.cov(reference.T))


def frechet_audio_distance_infinity(
    embeddings: np.ndarray, reference: np.ndarray, *, seed: int = 0
) -> tuple[float, float]:
    """FAD of ever more clips: a line over 1 / clips through the FAD of random parts of both, read at 0.

    Parts of both collections shrink together, so that the bias of either goes.

    Args:
        embeddings: The one collection.
        reference: The other.
        seed: Seed of the parts.

    Returns:
        The FAD where the line ends, and the share of the variance that the line explains.
    """
    _check_sizes(embeddings, reference)
    generator = np.random.default_rng(seed)
    shares = np.linspace(0.25, 1.0, NUM_SIZES)
    inverse, distances = [], []
    for share in shares:
        parts = [_draw(side, max(2, round(share * len(side))), generator) for side in (embeddings, reference)]
        inverse.append(1 / share)
        distances.append(frechet_audio_distance(*parts))
    slope, intercept = np.polyfit(inverse, distances, 1)
    residual = np.var(np.array(distances) - (slope * np.array(inverse) + intercept))
    return float(intercept), float(1 - residual / max(np.var(distances), 1e-300))


def _draw(embeddings: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    return embeddings[generator.permutation(len(embeddings))[:count]]


def median_distance(reference: np.ndarray) -> float:
    """Median Euclidean distance between clips of a collection, the usual width of the kernel."""
    _check_sizes(reference, reference)
    return float(np.median(pdist(reference)))


def kernel_audio_distance(
    embeddings: np.ndarray, reference: np.ndarray, *, bandwidth: float | None = None, scale: float = KAD_SCALE
) -> float:
    """KAD: the squared maximum mean discrepancy under a Gaussian kernel, estimated without bias.

    For two halves of one collection it is zero on average, and so negative about as often as positive.

    Args:
        embeddings: The one collection.
        reference: The other.
        bandwidth: Standard deviation of the kernel; `median_distance(reference)` when `None`.
        scale: What the discrepancy is multiplied with.
    """
    _check_sizes(embeddings, reference)
    bandwidth = median_distance(reference) if bandwidth is None else bandwidth
    if not bandwidth > 0:
        raise ValueError(f"`bandwidth` must be above 0, got {bandwidth}; most clips of the reference are the same.")

    def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.exp(-cdist(first, second, "sqeuclidean") / (2 * bandwidth**2))

    def mean_of_pairs(side: np.ndarray) -> float:
        return (kernel(side, side).sum() - len(side)) / (len(side) * (len(side) - 1))

    within = mean_of_pairs(embeddings) + mean_of_pairs(reference)
    return float(scale * (within - 2 * kernel(embeddings, reference).mean()))


def _check_sizes(embeddings: np.ndarray, reference: np.ndarray) -> None:
    for name, side in (("embeddings", embeddings), ("reference", reference)):
        if side.ndim != 2 or len(side) < 2:
            raise ValueError(f"`{name}` must hold at least two clips of shape (clips, size), got {side.shape}.")
        if not np.isfinite(side).all():
            raise ValueError(f"`{name}` must be finite; leave out the clips whose embeddings are not.")
    if embeddings.shape[1] != reference.shape[1]:
        raise ValueError(
            f"`embeddings` and `reference` must come from one embedder, got {embeddings.shape[1]} and "
            f"{reference.shape[1]} numbers a clip."
        )
