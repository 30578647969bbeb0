"""The autoencoder and the text encoder at work: latents of clips and states of texts, written as shards.

Each function does one process's share; `numbers` are the numbers of the shards that this process may write.
"""

import hashlib
import inspect
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from qamdt import embedded
from qamdt.audio import SAMPLING_RATE, LogMel, normalize_waveform, read_audio
from qamdt.complete_weights import load_complete
from qamdt.encoding import encode_waveforms, samples_per_latent_frame
from qamdt.files import read_json
from qamdt.keyed_rows import digest_weights
from qamdt.manifest import Record, resolve_clip_path
from qamdt.models.autoencoder_waveform import AutoencoderWaveform
from qamdt.shards import write_latent_shard, write_text_shard
from qamdt.sound_files import CUT_TOLERANCE_IN_S


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_SECONDS_PER_SHARD = 60.0  # what a killed process loses at most
_TOKENIZER_AND_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")


def describe_autoencoder(folder: Path, dtype: str) -> dict[str, Any]:
    """Returns all that latents depend on beside the clip.

    Args:
        folder: Folder of the autoencoder, of log-mel spectrograms or of waveforms.
        dtype: What it computes in, one of `DTYPES`.
    """
    config = read_autoencoder_config(folder)
    mel = {name: parameter.default for name, parameter in inspect.signature(LogMel).parameters.items()}
    return {
        "vae_sha256": digest_weights(folder),
        "mel": None if _hears_waveforms(config) else mel,
        "peak": 0.5,  # as `normalize_waveform` has it
        "latents_mean": config.get("latents_mean"),
        "latents_std": config.get("latents_std"),
        "dtype": dtype,
    }


def read_autoencoder_config(folder: Path) -> dict[str, Any]:
    """Returns the config of an autoencoder."""
    return read_json(folder / "config.json")


def _hears_waveforms(config: dict[str, Any]) -> bool:
    return config["_class_name"] == "AutoencoderWaveform"


def load_autoencoder(folder: Path, dtype: str) -> tuple[nn.Module, LogMel | None]:
    """Loads an autoencoder, and what its spectrograms are computed with; `None` for one that hears waveforms."""
    if _hears_waveforms(read_autoencoder_config(folder)):
        return load_complete(AutoencoderWaveform, folder, torch_dtype=DTYPES[dtype]).eval(), None
    return load_complete(AutoencoderKL, folder, torch_dtype=DTYPES[dtype]).eval(), LogMel()


def measure_frame_rate(folder: Path) -> float:
    """Returns the latent frames per second of an autoencoder, of which nothing but its config is read."""
    config = read_autoencoder_config(folder)
    with torch.device("meta"):
        if _hears_waveforms(config):
            return config["sampling_rate"] / samples_per_latent_frame(AutoencoderWaveform.from_config(config))
        vae = AutoencoderKL.from_config(config)
    return SAMPLING_RATE / samples_per_latent_frame(vae, LogMel())


def describe_text_encoder(name: str | None, max_tokens: int) -> dict[str, Any]:
    """Returns all that the states of a text depend on beside the text.

    Args:
        name: Folder or Hub id of a text encoder; the embedded one when `None`.
        max_tokens: Where longer texts are cut.
    """
    if name is None:
        encoder = embedded.TEXT_ENCODER_PACKAGE
    elif Path(name).is_dir():
        files = sorted(path for path in Path(name).iterdir() if path.suffix in _TOKENIZER_AND_WEIGHTS)
        encoder = hashlib.sha256(b"".join(_digest(path) for path in files)).hexdigest()
    else:
        encoder = f"{name}@{AutoConfig.from_pretrained(name)._commit_hash}"
    return {"text_encoder": encoder, "max_tokens": max_tokens}


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load_text_encoder(name: str | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Loads tokenizer and text encoder from a folder or Hub id, or the embedded sentence encoder."""
    if name is None:
        return embedded.load_text_encoder()
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = load_complete(AutoModel, name)
    return tokenizer, (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


@torch.inference_mode()
def encode_clips(
    clips: list[tuple[Record, int]],
    manifest: Path,
    vae: nn.Module,
    log_mel: LogMel | None,
    out: Path,
    numbers: Iterator[int],
    *,
    batch_size: int,
    clips_per_shard: int,
    show_progress: bool,
) -> dict[int, str]:
    """Writes a shard for every `clips_per_shard` clips, or every minute; returns the keys that failed, with the reasons.

    Args:
        clips: The clips with their keys.
        manifest: The manifest that they come from.
        vae: The autoencoder.
        log_mel: What its spectrograms are computed with, on the same device; `None` if it hears waveforms.
        out: Folder of the shards.
        numbers: Numbers of the shards to write.
        batch_size: Clips encoded at once.
        clips_per_shard: Most clips in a shard.
        show_progress: Whether to show a bar.
    """
    errors: dict[int, str] = {}
    keys, means, stds = [], [], []
    written_at = time.monotonic()

    progress = tqdm(total=len(clips), desc="clips", unit="clip", disable=not show_progress or None)
    for batch, waveforms in _read_batches(clips, manifest, batch_size, vae, log_mel, errors):
        posterior = encode_waveforms(vae, normalize_waveform(waveforms.to(vae.device)), log_mel)
        for key, mean, std in zip(batch, posterior.mean.float().cpu(), posterior.std.float().cpu(), strict=True):
            if not (mean.half().isfinite().all() and std.half().isfinite().all()):
                errors[key] = "its latents are not finite"
                continue
            keys.append(key)
            means.append(mean)
            stds.append(std)
        progress.update(len(batch))
        if len(keys) >= clips_per_shard or time.monotonic() - written_at > MOST_SECONDS_PER_SHARD:
            if keys:
                write_latent_shard(out, keys, means, stds, number=next(numbers))
            keys, means, stds = [], [], []
            written_at = time.monotonic()
    if keys:
        write_latent_shard(out, keys, means, stds, number=next(numbers))
    progress.close()
    return errors


def _read_batches(
    clips: list[tuple[Record, int]],
    manifest: Path,
    batch_size: int,
    vae: nn.Module,
    log_mel: LogMel | None,
    errors: dict[int, str],
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yields the keys of clips of equal length, and their waveforms `(batch, samples)`; failures go to `errors`."""
    sampling_rate = vae.config.sampling_rate if log_mel is None else SAMPLING_RATE
    hop = samples_per_latent_frame(vae, log_mel)
    waiting: dict[int, tuple[list[int], list[torch.Tensor]]] = {}
    for record, key in clips:
        try:
            waveform = read_audio(
                resolve_clip_path(manifest, record),
                sampling_rate,
                start_in_s=record.start_in_s,
                duration_in_s=record.duration_in_s,
            )
            missing_in_s = record.duration_in_s - waveform.shape[0] / sampling_rate
            if missing_in_s > CUT_TOLERANCE_IN_S:
                raise ValueError(f"its file ends {missing_in_s:.2f} s before the clip should.")
            num_samples = waveform.shape[0] // hop * hop
            if num_samples == 0:
                raise ValueError(f"the clip is shorter than one latent frame, {waveform.shape[0]} samples.")
        except (ValueError, OSError) as error:
            errors[key] = str(error)
            continue
        keys, waveforms = waiting.setdefault(num_samples, ([], []))
        keys.append(key)
        waveforms.append(waveform[:num_samples])
        if len(keys) == batch_size:
            yield keys, torch.stack(waveforms)
            del waiting[num_samples]
    for keys, waveforms in waiting.values():
        yield keys, torch.stack(waveforms)


@torch.inference_mode()
def encode_texts(
    texts: list[tuple[str, int]],
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    out: Path,
    numbers: Iterator[int],
    *,
    batch_size: int,
    max_tokens: int,
    show_progress: bool,
    texts_per_shard: int = 4096,
) -> None:
    """Writes the encoder states of texts, given with their keys, a shard at a time; the rest as `encode_clips`."""
    progress = tqdm(total=len(texts), desc="texts", unit="text", disable=not show_progress or None)
    keys, states = [], []
    written_at = time.monotonic()
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        tokens = tokenizer(
            [text for text, _ in batch], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        ).to(encoder.device)
        hidden_states = encoder(**tokens).last_hidden_state.float().cpu()  # (B, L, D)
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        keys += [key for _, key in batch]
        states += [state[:length] for state, length in zip(hidden_states, lengths, strict=True)]
        progress.update(len(batch))
        is_last = start + batch_size >= len(texts)
        if is_last or len(keys) >= texts_per_shard or time.monotonic() - written_at > MOST_SECONDS_PER_SHARD:
            write_text_shard(out, keys, states, number=next(numbers))
            keys, states = [], []
            written_at = time.monotonic()
    progress.close()
