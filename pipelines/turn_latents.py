"""Gives a model's network another autoencoder's latents to begin with, where both have as many numbers in a column.

    python -m pipelines.turn_latents --vae NEW_AUTOENCODER --manifest corpus/manifest.jsonl --out TURNED

The orthogonal matrix that brings the model's own latent columns nearest to the new ones of the same sound goes into the
network's first and last layer. Noise stays white under it, so the network begins with what it knew, as far as the two are
alike: `train_qamdt.py run.init_from=TURNED` goes on from there. For patches that are one latent frame long and as wide as
the latents.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.audio import LogMel, normalize_waveform, read_audio
from qamdt.complete_weights import load_complete
from qamdt.encoding import encode_waveforms
from qamdt.manifest import read_manifest, resolve_clip_path
from qamdt.models.autoencoder_waveform import AutoencoderWaveform
from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel


def find_rotation(columns: torch.Tensor, new_columns: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Finds the orthogonal matrix that brings columns `(columns, numbers)` nearest to others of the same sound.

    Returns:
        The matrix `(numbers, numbers)`, by which a column is multiplied from the left, and the correlation after it.
    """
    columns, new_columns = columns - columns.mean(dim=0), new_columns - new_columns.mean(dim=0)
    u, _, v = torch.linalg.svd(new_columns.T @ columns)
    rotation = u @ v
    turned = columns @ rotation.T
    return rotation, float((turned * new_columns).sum() / (turned.norm() * new_columns.norm()))


def turn_network(transformer: QAMDTTransformer2DModel, rotation: torch.Tensor) -> QAMDTTransformer2DModel:
    """Returns the network for latents `(batch, numbers, frames, 1)` that are its own ones, turned.

    Args:
        transformer: A network whose patches are one latent frame long and as wide as the latents.
        rotation: What `find_rotation` returned.

    Raises:
        ValueError: Its patches are others.
    """
    config = transformer.config
    channels, (num_frames, bins) = config.in_channels, config.sample_size
    if tuple(config.patch_size) != (1, bins) or any(config.patch_overlap) or len(rotation) != channels * bins:
        raise ValueError(
            f"`transformer` must have patches of (1, {bins}) that do not overlap, and columns of {len(rotation)} numbers, "
            f"got patches of {tuple(config.patch_size)} and columns of {channels * bins}."
        )
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    shape = {"in_channels": len(rotation), "sample_size": (num_frames, 1), "patch_size": (1, 1)}
    turned = QAMDTTransformer2DModel(**{**arguments, **shape})
    weights = transformer.state_dict()
    first = weights["patch_embed.proj.weight"].flatten(1)  # (D, numbers), channels before bins
    weights["patch_embed.proj.weight"] = (first @ rotation.T)[:, :, None, None]
    # In which order the last layer has the numbers of a column.
    numbers = torch.arange(len(rotation), dtype=torch.float32).expand(1, num_frames, -1)
    order = transformer.patch_embed.unpatchify(numbers, (num_frames, bins))[0, :, 0].flatten().long()
    for name in ("proj_out.weight", "proj_out.bias"):
        weights[name] = rotation @ weights[name][order]
    turned.load_state_dict(weights)
    return turned


@torch.inference_mode()
def encode_both(
    pipe: QAMDTPipeline, autoencoder: AutoencoderWaveform, manifest: Path, num_clips: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent columns of the first training clips, `(columns, numbers)`, of a model and of another autoencoder."""
    log_mel = None if pipe.vocoder is None else LogMel()
    columns, new_columns = [], []
    records = [record for record in read_manifest(manifest) if record.tags.get("split", "train") == "train"]
    for record in tqdm(records[:num_clips], desc="clips", disable=None):
        path = resolve_clip_path(manifest, record)
        waveform = read_audio(path, start_in_s=record.start_in_s, duration_in_s=record.duration_in_s)[None]
        waveform = normalize_waveform(waveform)
        latents = encode_waveforms(pipe.vae, waveform, log_mel).mode() * pipe.vae.config.scaling_factor
        new_latents = encode_waveforms(autoencoder, waveform).mode() * autoencoder.config.scaling_factor
        num_frames = min(latents.shape[2], new_latents.shape[2])
        columns.append(latents[0, :, :num_frames].transpose(0, 1).flatten(1))
        new_columns.append(new_latents[0, :, :num_frames].transpose(0, 1).flatten(1))
    return torch.cat(columns), torch.cat(new_columns)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; the embedded model when left out")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the new autoencoder of waveforms")
    parser.add_argument("--manifest", type=Path, required=True, help="music to compare the latents on")
    parser.add_argument("--num-clips", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True, help="new folder, which receives transformer/")
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        parser.error(f"`--out` must be a new folder, got {str(arguments.out)!r}, which is there.")
    pipe = QAMDTPipeline.from_pretrained(arguments.model)
    autoencoder = load_complete(AutoencoderWaveform, arguments.vae).eval()
    rotation, correlation = find_rotation(*encode_both(pipe, autoencoder, arguments.manifest, arguments.num_clips))
    turn_network(pipe.transformer, rotation).save_pretrained(arguments.out / "transformer")
    print(f"{arguments.out}: turned latents correlate {correlation:.2f} with the new ones")


if __name__ == "__main__":
    main()
