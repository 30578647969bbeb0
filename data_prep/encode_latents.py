"""Encodes the clips of a manifest once, so that training never runs the autoencoder or the text encoder.

    python -m data_prep.encode_latents --manifest corpus/manifest.jsonl
    accelerate launch data_prep/encode_latents.py --manifest corpus/manifest.jsonl --vae VAE_FOLDER --out corpus/latents

With `accelerate launch` or `torchrun`, every process encodes its share on its own device. For each clip: mean and standard deviation of the VAE posterior (training samples from it) and the quality curve at one
value per latent frame. For each distinct text that training can ask for: the states of the text encoder. The command may
be killed at any moment; the same command again does what is missing. Clips that cannot be encoded are counted, listed
in `bad_clips.jsonl`, and make the exit status 1.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from qamdt import embedded
from qamdt.audio import SAMPLING_RATE, LogMel, normalize_waveform, read_audio
from qamdt.cpu_memory import keep_freed_memory
from qamdt.files import write_atomically, write_json
from qamdt.manifest import Record, read_manifest, resolve_clip_path
from qamdt.quality import QualityStats
from qamdt.shards import (
    INDEX_NAME,
    LatentShards,
    TextShards,
    digest_weights,
    list_shards,
    next_shard_number,
    open_folder,
    read_offsets,
    read_shard_moments,
    round_score,
    write_latent_shard,
    write_text_shard,
)


HOP_LENGTH = 160  # samples per mel frame, as `LogMel` has it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def encode_corpus(
    manifest: str | Path,
    vae: str | Path | None = None,
    out: str | Path | None = None,
    *,
    text_encoder: str | Path | None = None,
    quality_stats: str | Path | None = None,
    split: str | None = None,
    max_captions: int | None = None,
    batch_size: int = 16,
    text_batch_size: int = 128,
    max_text_tokens: int = 128,
    clips_per_shard: int = 512,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    limit: int | None = None,
) -> int:
    """Encodes a corpus into a folder of shards and returns the number of bad clips.

    Under `accelerate launch` or `torchrun` the processes share the work; all of them return the same number.

    Args:
        manifest: The manifest of the corpus.
        vae: Folder of the `AutoencoderKL`; the embedded one when `None`.
        out: Folder of shards to write or to complete; `latents` beside the manifest when `None`.
        text_encoder: Folder or Hub id with a tokenizer and a text encoder; the embedded sentence encoder when `None`.
        quality_stats: JSON file of quality statistics whose thresholds to keep, so that a level means the same in every
            data set that a scorer rated; thresholds are derived from the clips' own scores when `None`.
        split: Only clips whose tag `split` has this value.
        max_captions: How many captions of a clip to use at most.
        batch_size: Clips encoded at once.
        text_batch_size: Texts encoded at once.
        max_text_tokens: Where longer texts are cut.
        clips_per_shard: Clips in a file; at most this many are encoded again after a kill.
        device: Where to compute; the accelerator of this process, if there is one, when `None`.
        dtype: What the autoencoder computes in.
        limit: Only so many clips, for a trial.
    """
    vae = embedded.default_model_dir() / "vae" if vae is None else Path(vae)
    out = Path(manifest).parent / "latents" if out is None else Path(out)
    # A process that is done early waits for the others, however long that takes.
    processes = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    rank, num_ranks = processes.process_index, processes.num_processes
    device = processes.device if device is None else device
    records = _choose_records(manifest, split, limit)
    stats = _choose_stats(records, quality_stats)

    out.mkdir(parents=True, exist_ok=True)
    if processes.is_main_process:
        for leftover in [*out.glob(".*.tmp"), *out.glob(".bad_clips-*.jsonl")]:
            leftover.unlink()
        _check_settings(out, vae, str(text_encoder or "embedded"))
    processes.wait_for_everyone()

    # Clips: what is done is the same for every process, as none has written yet.
    done = {record.id for record in LatentShards(out).records} if list_shards(out, "latents") else set()
    missing = [record for record in records if record.id not in done]
    numbers = itertools.count(next_shard_number(out, "latents") + rank, num_ranks)
    processes.wait_for_everyone()
    autoencoder = AutoencoderKL.from_pretrained(vae, torch_dtype=dtype).to(device).eval()
    bad_clips = _encode_clips(
        missing[rank::num_ranks],
        Path(manifest),
        autoencoder,
        out,
        numbers,
        batch_size=batch_size,
        clips_per_shard=clips_per_shard,
        show_progress=processes.is_main_process,
    )
    del autoencoder
    bad_clips = _gather_bad_clips(out, bad_clips, processes)
    if not list_shards(out, "latents"):
        raise ValueError(f"none of the {len(records)} clips could be encoded; see {out / 'bad_clips.jsonl'}.")

    # Texts, in the same way.
    texts = sorted({text for record in records for text in list_training_texts(record, stats, max_captions)})
    cached = TextShards(out)
    missing_texts = sorted((text for text in texts if text not in cached), key=len)  # alike lengths pad little
    numbers = itertools.count(next_shard_number(out, "text") + rank, num_ranks)
    processes.wait_for_everyone()
    tokenizer, encoder = load_text_encoder(text_encoder)
    _encode_texts(
        missing_texts[rank::num_ranks],
        tokenizer,
        encoder.to(device),
        out,
        numbers,
        batch_size=text_batch_size,
        max_tokens=max_text_tokens,
        show_progress=processes.is_main_process,
    )
    processes.wait_for_everyone()
    if processes.is_main_process:
        write_json(out / INDEX_NAME, _describe(out, vae, stats, max_captions))
    processes.wait_for_everyone()
    return len(bad_clips)


def _choose_records(manifest: str | Path, split: str | None, limit: int | None) -> list[Record]:
    """Returns the clips to encode."""
    records = read_manifest(manifest)
    if split is not None:
        records = [record for record in records if record.tags.get("split") == split]
    records = records[:limit]
    if not records:
        raise ValueError(f"no clip of {str(manifest)!r} is left to encode (`split` is {split!r}).")
    return records


def _choose_stats(records: list[Record], path: str | Path | None) -> QualityStats | None:
    """Reads the thresholds between quality levels, or derives them; `None` when no clip has a score."""
    scorers = {record.quality_scorer for record in records if record.quality_score is not None}
    if len(scorers) > 1:
        raise ValueError(
            f"the quality scores come from different scorers, {sorted(map(str, scorers))}; score all clips with one."
        )
    if path is None:
        scores = [record.quality_score for record in records if record.quality_score is not None]
        return QualityStats.from_scores(scores, scorer=str(scorers.pop())) if scores else None
    stats = QualityStats.load(path)
    if scorers != {stats.scorer}:
        raise ValueError(
            f"`quality_stats` {str(path)!r} holds the thresholds of {stats.scorer!r}, and the clips were scored by "
            f"{sorted(map(str, scorers)) or 'nobody'}; give the statistics of the same scorer."
        )
    return stats


def load_text_encoder(folder: str | Path | None) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Loads tokenizer and text encoder from a folder or Hub id, or the embedded sentence encoder."""
    if folder is None:
        return embedded.load_text_encoder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    return tokenizer, (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


def list_training_texts(record: Record, stats: QualityStats | None, max_captions: int | None) -> list[str]:
    """Returns every text that training can draw for a clip: captions bare and with each quality prefix it may need.

    The score of a crop is a mean over part of the clip's curve, so it lies between the curve's extremes, and every
    prefix from the one of the worst moment to the one of the best may be asked for.
    """
    captions = record.captions[:max_captions] or ("",)
    if stats is None or record.quality_score is None:
        return ["", *captions]
    curve = record.quality_frames or (record.quality_score,)
    lowest, highest = round_score(min(curve)), round_score(max(curve))
    prefixes = ["", *stats.prefixes_between(lowest, highest)]
    return ["", *(prefix + caption for prefix in prefixes for caption in captions)]


def resample_curve(record: Record, num_frames: int) -> torch.Tensor:
    """Returns the opinion score at the centre of each of `num_frames` latent frames, NaN where the clip has none."""
    if record.quality_frames is None:
        score = math.nan if record.quality_score is None else record.quality_score
        return torch.full((num_frames,), score)
    curve = torch.tensor(record.quality_frames, dtype=torch.float32)
    seconds = (torch.arange(num_frames) + 0.5) * record.duration_in_s / num_frames
    place = (seconds * record.quality_frame_rate - 0.5).clamp(0, len(curve) - 1)
    left = place.long()
    right = (left + 1).clamp(max=len(curve) - 1)
    return torch.lerp(curve[left], curve[right], place - left)


def _check_settings(out: Path, vae: Path, text_encoder: str) -> None:
    """Refuses to add to a folder that another autoencoder or text encoder filled."""
    settings = {"vae_sha256": digest_weights(vae), "text_encoder": text_encoder}
    path = out / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise ValueError(
            f"{str(out)!r} was filled with other models ({path.read_text().strip()}); give another `--out` or empty it."
        )
    write_json(path, settings)


@torch.inference_mode()
def _encode_clips(
    records: list[Record],
    manifest: Path,
    vae: AutoencoderKL,
    out: Path,
    numbers: Iterator[int],
    *,
    batch_size: int,
    clips_per_shard: int,
    show_progress: bool,
) -> list[dict[str, str]]:
    """Writes a shard for every `clips_per_shard` clips, and returns the clips that failed."""
    bad_clips: list[dict[str, str]] = []
    kept: list[Record] = []
    means, stds, curves = [], [], []
    log_mel = LogMel().to(vae.device)

    progress = tqdm(total=len(records), desc="clips", unit="clip", disable=not show_progress)
    for batch, waveforms in _read_batches(records, manifest, batch_size, _reduction(vae), bad_clips):
        mel = log_mel(normalize_waveform(waveforms.to(vae.device))).to(vae.dtype)  # (B, 1, frames, mel_bins)
        posterior = vae.encode(mel).latent_dist
        for record, mean, std in zip(batch, posterior.mean.float().cpu(), posterior.std.float().cpu(), strict=True):
            if not (mean.half().isfinite().all() and std.half().isfinite().all()):
                bad_clips.append({"id": record.id, "path": record.path, "error": "its latents are not finite"})
                continue
            kept.append(record)
            means.append(mean)
            stds.append(std)
            curves.append(resample_curve(record, mean.shape[1]))
        progress.update(len(batch))
        if len(kept) >= clips_per_shard:
            write_latent_shard(out, kept, means, stds, curves, number=next(numbers))
            kept, means, stds, curves = [], [], [], []
    if kept:
        write_latent_shard(out, kept, means, stds, curves, number=next(numbers))
    progress.close()
    return bad_clips


def _reduction(vae: AutoencoderKL) -> int:
    """Mel frames per latent frame."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _read_batches(
    records: list[Record], manifest: Path, batch_size: int, reduction: int, bad_clips: list[dict[str, str]]
) -> Iterator[tuple[list[Record], torch.Tensor]]:
    """Yields clips of equal length with their waveforms `(batch, samples)`; failures go to `bad_clips`."""
    waiting: dict[int, tuple[list[Record], list[torch.Tensor]]] = {}
    for record in records:
        try:
            waveform = read_audio(
                resolve_clip_path(manifest, record),
                SAMPLING_RATE,
                start_in_s=record.start_in_s,
                duration_in_s=record.duration_in_s,
            )
            num_frames = waveform.shape[0] // HOP_LENGTH // reduction * reduction
            if num_frames == 0:
                raise ValueError(f"the clip is shorter than one latent frame, {waveform.shape[0]} samples.")
        except (ValueError, OSError) as error:
            bad_clips.append({"id": record.id, "path": record.path, "error": str(error)})
            continue
        batch, waveforms = waiting.setdefault(num_frames, ([], []))
        batch.append(record)
        waveforms.append(waveform[: num_frames * HOP_LENGTH])
        if len(batch) == batch_size:
            yield batch, torch.stack(waveforms)
            del waiting[num_frames]
    for batch, waveforms in waiting.values():
        yield batch, torch.stack(waveforms)


@torch.inference_mode()
def _encode_texts(
    texts: list[str],
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
    """Writes the encoder states of texts, a shard at a time."""
    progress = tqdm(total=len(texts), desc="texts", unit="text", disable=not show_progress)
    for shard_start in range(0, len(texts), texts_per_shard):
        shard = texts[shard_start : shard_start + texts_per_shard]
        states = []
        for start in range(0, len(shard), batch_size):
            batch = shard[start : start + batch_size]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
            tokens = tokens.to(encoder.device)
            hidden_states = encoder(**tokens).last_hidden_state.float().cpu()  # (B, L, D)
            lengths = tokens["attention_mask"].sum(dim=1).tolist()
            states += [state[:length] for state, length in zip(hidden_states, lengths, strict=True)]
            progress.update(len(batch))
        write_text_shard(out, shard, states, number=next(numbers))
    progress.close()


def _gather_bad_clips(out: Path, bad_clips: list[dict[str, str]], processes: PartialState) -> list[dict[str, str]]:
    """Writes `bad_clips.jsonl` and returns the bad clips of all processes."""
    lines = [json.dumps(clip, ensure_ascii=False) + "\n" for clip in bad_clips]
    (out / f".bad_clips-{processes.process_index:05d}.jsonl").write_text("".join(lines), encoding="utf-8")
    processes.wait_for_everyone()
    if processes.is_main_process:
        parts = sorted(out.glob(".bad_clips-*.jsonl"))
        lines = "".join(part.read_text(encoding="utf-8") for part in parts)
        write_atomically(out / "bad_clips.jsonl", lambda file: file.write_text(lines, encoding="utf-8"))
        for part in parts:
            part.unlink()
    processes.wait_for_everyone()
    return [json.loads(line) for line in (out / "bad_clips.jsonl").read_text(encoding="utf-8").splitlines()]


def _describe(out: Path, vae: Path, stats: QualityStats | None, max_captions: int | None) -> dict:
    """Returns what `index.json` holds."""
    shards, texts, folder = LatentShards(out), TextShards(out), open_folder(out)
    mean, _, _ = shards.read(0, 0, int(shards.lengths[0]))
    moments = [read_shard_moments(out / name) for name in shards.names]
    total = {key: sum(moment[key] for moment in moments) for key in moments[0]}
    config = json.loads((vae / "config.json").read_text())
    return {
        "format": 1,
        "num_clips": len(shards),
        "num_latent_frames": int(shards.lengths.sum()),
        "shortest_clip_in_frames": int(shards.lengths.min()),
        "longest_clip_in_frames": int(shards.lengths.max()),
        "latent_channels": mean.shape[0],
        "latent_bins": mean.shape[2],
        "latent_frames_per_second": SAMPLING_RATE / HOP_LENGTH / 2 ** (len(config["block_out_channels"]) - 1),
        "scaling_factor": _scaling_factor(total),
        "vae_scaling_factor": config["scaling_factor"],
        "num_texts": len(texts),
        "text_dim": texts.read("").shape[1],
        "max_captions": max_captions,
        "quality": None if stats is None else stats.to_dict(),
        "shards": [
            {"file": name, "scaling_factor": _scaling_factor(moment), "num_values": int(moment["num_values"])}
            for name, moment in zip(shards.names, moments, strict=True)
        ],
        # Frames of each clip and tokens of each text, so that a reader from afar need not open every shard at once.
        "lengths": {
            name: np.diff(read_offsets(out / name)).tolist()
            for kind in ("latents", "text")
            for name in folder.list_shards(kind)
        },
    }


def _scaling_factor(moments: dict[str, float]) -> float:
    """Returns one over the standard deviation of posterior samples."""
    mean = moments["sum"] / moments["num_values"]
    return 1 / math.sqrt(moments["sum_of_squares"] / moments["num_values"] - mean**2)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="manifest of the corpus")
    parser.add_argument("--vae", help="folder of the AutoencoderKL (default: the embedded one)")
    parser.add_argument("--out", help="folder of shards to write or complete (default: latents beside the manifest)")
    parser.add_argument("--text-encoder", help="folder or Hub id of a text encoder (default: the embedded one)")
    parser.add_argument("--quality-stats", help="quality statistics whose thresholds to keep (default: these clips')")
    parser.add_argument("--split", help="only clips whose tag `split` has this value")
    parser.add_argument("--max-captions", type=int, help="captions of a clip to use at most (default: all)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--clips-per-shard", type=int, default=512)
    parser.add_argument("--device", help="where to compute (default: this process's accelerator, else the CPU)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--limit", type=int, help="only so many clips, for a trial")
    arguments = vars(parser.parse_args(argv))
    arguments["dtype"] = DTYPES[arguments["dtype"]]
    keep_freed_memory()
    try:
        num_bad_clips = encode_corpus(**arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = Path(arguments["out"] or Path(arguments["manifest"]).parent / "latents")
    if PartialState().is_main_process:
        index = open_folder(out).index
        print(
            f"{index['num_clips']} clips and {index['num_texts']} texts in {out}; scaling factor "
            f"{index['scaling_factor']:.5f} (the autoencoder's config says {index['vae_scaling_factor']:.5f})."
        )
        if num_bad_clips:
            print(f"{num_bad_clips} bad clips, listed in {out / 'bad_clips.jsonl'}.", file=sys.stderr)
    return int(num_bad_clips > 0)


if __name__ == "__main__":
    sys.exit(main())
