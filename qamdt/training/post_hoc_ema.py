"""Averages a run's weights anew after its training, over any length (Karras et al. 2024, "post-hoc EMA").

    python -m qamdt.training.post_hoc_ema runs/small --length 0.08 --out weights

The run must have been trained with `optim.ema_snapshot_lengths=[0.05, 0.1]`. `weights` gets what the run's `export`
holds, with other weights in `transformer`, so it opens as `export` does. `--length` is the spread of the averaged updates
as a share of the training (`qamdt.training.ema_snapshots`); `--step` asks for the average as it was after an earlier update.

Any average is a weighted sum of the weights after each update, and so is a sum of snapshots. The snapshots are summed
with the coefficients for which the two come closest (section 3.2, algorithm 3). How far they stay apart is printed: less
than a percent for lengths between those of ten snapshots or more, and much more for a length far below theirs.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS_FILE
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from qamdt.files import read_json, replace_folder, write_json
from qamdt.training.config import MAX_EMA_LENGTH
from qamdt.training.ema_snapshots import SNAPSHOT_FOLDER, power_of_length


@dataclass(frozen=True)
class Snapshot:
    """One average as it was after some update, in a file.

    Args:
        path: The file.
        step: Updates that went into it.
        length: Length of the average.
        run_digest: Tells the run that wrote it.
    """

    path: Path
    step: int
    length: float
    run_digest: str


def reconstruct(run: Path, length: float, out: Path, step: int | None = None) -> float:
    """Writes a model with averaged weights, and returns how far the average is from the wanted one.

    Args:
        run: The run's folder, with `export` and `ema_snapshots`.
        length: Length of the wanted average.
        out: Folder to write, which must be new or empty.
        step: The update after which the average is wanted; that of the last snapshot when None.
    """
    if not 0 < length <= MAX_EMA_LENGTH:
        raise ValueError(
            f"`--length` must be above 0 and at most {MAX_EMA_LENGTH}, got {length}; a plain mean over the whole "
            "training would have 0.289."
        )
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"`--out` must be a new or an empty folder, got {str(out)!r}; choose another.")
    snapshots = list_snapshots(run)
    steps = sorted({snapshot.step for snapshot in snapshots})
    step = steps[-1] if step is None else step
    if step not in steps:
        nearest = min(steps, key=lambda other: abs(other - step))
        raise ValueError(
            f"`--step` must be one at which the run wrote snapshots, got {step}; the nearest is {nearest}."
        )
    # Later snapshots would not bring the sum closer.
    snapshots = [snapshot for snapshot in snapshots if snapshot.step <= step]
    coefficients, distance = solve_coefficients(
        [snapshot.step for snapshot in snapshots], [snapshot.length for snapshot in snapshots], step, length
    )
    write_model(run / "export", combine(snapshots, coefficients), out, {"step": step, "ema_length": length})
    return distance


def list_snapshots(run: Path) -> list[Snapshot]:
    """Returns the snapshots of a run, after checking that they are whole and belong together."""
    network = run / "export" / "transformer" / WEIGHTS_FILE
    paths = sorted((run / SNAPSHOT_FOLDER).glob("step-*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"there are no snapshots in {str(run / SNAPSHOT_FOLDER)!r}; name the `run.output_dir` of a run that was "
            "trained with `optim.ema_snapshot_lengths=[0.05, 0.1]`."
        )
    if not network.is_file():
        raise FileNotFoundError(
            f"there is no {str(network)!r}, which comes with the first checkpoint; let the run go on until then."
        )
    _, shapes = read_header(network)
    snapshots = []
    for path in paths:
        metadata, snapshot_shapes = read_header(path)
        if "snapshot" not in metadata:
            raise ValueError(f"{path} is no snapshot that a run of ours wrote. Move it away.")
        if snapshot_shapes != shapes:
            name = min(snapshot_shapes.items() ^ shapes.items())[0]
            raise ValueError(
                f"{path} is of another network than {network}: {name!r} has the shape {snapshot_shapes.get(name)}, "
                f"expected {shapes.get(name)}. Move it away."
            )
        snapshots.append(Snapshot(path=path, **json.loads(metadata["snapshot"])))
        if snapshots[-1].run_digest != snapshots[0].run_digest:
            raise ValueError(f"{paths[0]} and {path} are of different runs; keep those of one run in this folder.")
    return snapshots


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Returns the metadata of a safetensors file, and the shapes of its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}). If it is a snapshot, move it away; the others will do."
        ) from error


def solve_coefficients(steps: list[int], lengths: list[float], step: int, length: float) -> tuple[np.ndarray, float]:
    """Finds the sum of averages that is closest to a wanted average.

    Args:
        steps: Updates that went into each average.
        lengths: The length of each.
        step: Updates that the wanted average is over.
        length: Its length.

    Returns:
        The coefficients, which sum to one, and how far the sum's weights over time are from those of the wanted
        average, relative to the size of these.
    """
    powers = np.array([power_of_length(other) for other in lengths])
    steps, power = np.array(steps, dtype=np.float64), power_of_length(length)
    gram = inner_products(steps[:, None], powers[:, None], steps, powers)
    wanted = inner_products(steps, powers, float(step), power)
    coefficients = np.linalg.solve(gram, wanted)
    coefficients /= coefficients.sum()
    size = inner_products(float(step), power, float(step), power)
    squared_distance = size - 2 * coefficients @ wanted + coefficients @ gram @ coefficients
    return coefficients, float(np.sqrt(max(squared_distance, 0.0) / size))


def inner_products(
    steps: np.ndarray | float,
    powers: np.ndarray | float,
    other_steps: np.ndarray | float,
    other_powers: np.ndarray | float,
) -> np.ndarray | float:
    """Returns the integrals over time of the products of two averages' weights (Karras et al. 2024, equation 151)."""
    earlier, later = np.minimum(steps, other_steps), np.maximum(steps, other_steps)
    power_of_later = np.where(steps < other_steps, other_powers, powers)
    return (
        (powers + 1) * (other_powers + 1) / (powers + other_powers + 1) * (earlier / later) ** power_of_later / later
    )


def combine(snapshots: list[Snapshot], coefficients: np.ndarray) -> dict[str, torch.Tensor]:
    """Returns the sum of snapshots, in float32; of the snapshots, no more than a tensor at a time is in memory."""
    total: dict[str, torch.Tensor] = {}
    for snapshot, coefficient in zip(tqdm(snapshots, unit="snapshot", disable=None), coefficients, strict=True):
        with safe_open(snapshot.path, framework="pt") as file:
            for name in file.keys():
                value = file.get_tensor(name).float() * coefficient
                total[name] = total[name].add_(value) if name in total else value
    return total


def write_model(export: Path, weights: dict[str, torch.Tensor], out: Path, training: dict) -> None:
    """Writes an export with other weights.

    Args:
        export: What the run exported.
        weights: The transformer's weights.
        out: Folder to write.
        training: What `training.json` shall say of the weights.
    """
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    is_replaced = {str(export / "transformer"): [WEIGHTS_FILE], str(export): ["training.json"]}
    shutil.copytree(export, temporary, ignore=lambda folder, names: is_replaced.get(str(folder), []))
    path = temporary / "transformer" / WEIGHTS_FILE
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read
    scaling_factor = read_json(export / "training.json")["scaling_factor"]
    training = {**training, "scaling_factor": scaling_factor}
    write_json(temporary / "training.json", training)
    replace_folder(temporary, out)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run, its `run.output_dir`")
    parser.add_argument("--length", type=float, required=True, help="spread of the average, such as 0.08")
    parser.add_argument("--step", type=int, help="a step with snapshots (default: the last)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    try:
        distance = reconstruct(arguments.run, arguments.length, arguments.out, arguments.step)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: within {distance:.1%} of an average of length {arguments.length}")
    if distance > 0.1:
        print("warning: that is far off; `optim.ema_snapshot_steps` was too large for this length.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
