"""Brings a folder of encoded music up to date with a manifest: what is missing is encoded, the rest is kept.

Latents and text states are found by all that they depend on: the clip's sound and span and the autoencoder, the text and
the text encoder. Everything else that training reads, the index with clips, texts and curves, is written anew each time.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from data_prep.latent_encoders import (
    describe_autoencoder,
    describe_text_encoder,
    encode_clips,
    encode_texts,
    load_autoencoder,
    load_text_encoder,
    measure_frame_rate,
    read_autoencoder_config,
)
from data_prep.latent_index import choose_records, choose_stats, list_training_texts, make_curves
from data_prep.old_latents import take_over_old_latents
from qamdt import embedded
from qamdt.files import claim, read_json, write_json_lines
from qamdt.keyed_rows import make_key
from qamdt.latent_folder import (
    INDEX_NAME,
    Clip,
    LatentFolder,
    find_unnamed_files,
    read_clips,
    write_index,
)
from qamdt.manifest import Record, clip_identity, resolve_clip_path
from qamdt.outputs import check_output_folder, has_fields
from qamdt.precision import check_device
from qamdt.quality import QualityStats
from qamdt.shards import Place, find_entries, next_shard_number


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """What decides, beside the manifest, what a folder of encoded music holds; its index remembers them.

    Args:
        vae: Folder of the autoencoder, `AutoencoderKL` or `AutoencoderWaveform`; the embedded one when `None`.
        text_encoder: Folder or Hub id with a tokenizer and a text encoder; the embedded sentence encoder when `None`.
        quality_stats: JSON file of quality statistics whose thresholds to keep, so that a level means the same in every
            data set that a scorer rated; when `None`, those beside the manifest, or derived ones.
        split: Only clips whose tag `split` has this value.
        limit: Only so many clips, for a trial.
        max_captions: How many captions of a clip to use at most.
        max_text_tokens: Where longer texts are cut.
        dtype: What the autoencoder computes in, "float32" or "bfloat16".
    """

    vae: str | None = None
    text_encoder: str | None = None
    quality_stats: str | None = None
    split: str | None = None
    limit: int | None = None
    max_captions: int | None = None
    max_text_tokens: int = 128
    dtype: str = "float32"

    def resolve(self) -> "EncodingOptions":
        """Returns the same options with whole paths, so that they mean the same in any folder."""
        paths = {name: getattr(self, name) for name in ("vae", "text_encoder", "quality_stats")}
        return replace(
            self, **{name: str(Path(path).resolve()) for name, path in paths.items() if path and Path(path).exists()}
        )


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """What a run of `encode_corpus` did.

    Args:
        num_kept: Clips whose latents were there.
        num_encoded: Clips that were encoded.
        num_dropped: Clips of the index before that are no longer in it.
        num_bad: Clips that could not be encoded, and lines of the manifest that describe none.
        num_texts_kept: Texts whose states were there.
        num_texts_encoded: Texts that were encoded.
    """

    num_kept: int
    num_encoded: int
    num_dropped: int
    num_bad: int
    num_texts_kept: int
    num_texts_encoded: int

    def __str__(self) -> str:
        return (
            f"clips: {self.num_kept} kept, {self.num_encoded} encoded, {self.num_dropped} dropped from the index; "
            f"texts: {self.num_texts_kept} kept, {self.num_texts_encoded} encoded"
        )


def encode_corpus(
    manifest: str | Path,
    out: str | Path | None = None,
    options: EncodingOptions | None = None,
    *,
    batch_size: int = 16,
    text_batch_size: int = 128,
    clips_per_shard: int = 512,
    device: str | None = None,
    clean: bool = False,
) -> EncodingReport:
    """Brings a folder of encoded music up to date with a manifest.

    Under `accelerate launch` or `torchrun` the processes share the work; all of them return the same report.

    Args:
        manifest: The manifest of the corpus.
        out: Folder to write or to complete; `latents` beside the manifest when `None`.
        options: What decides what the folder holds; all as by default when `None`.
        batch_size: Clips encoded at once.
        text_batch_size: Texts encoded at once.
        clips_per_shard: Most clips in a file; after a kill at most so many, or those of a minute, are encoded again.
        device: Where to compute; the accelerator of this process, if there is one, when `None`.
        clean: Whether to remove files that the new index does not name; a training that reads them would fail.

    Raises:
        RuntimeError: Another process writes to the folder, or a file in it is damaged.
        ValueError: The manifest, its scores or the options do not go together, or no clip can be encoded.
    """
    manifest = Path(manifest)
    out = manifest.parent / "latents" if out is None else Path(out)
    if device is not None:
        check_device(device)
    options = (options or EncodingOptions()).resolve()
    # A process that is done early waits for the others, however long that takes.
    processes = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    is_ours = (out / ".lock").is_file() or has_fields(out / INDEX_NAME, ["format", "num_clips"])
    check_output_folder(out, [INDEX_NAME, "bad_clips.jsonl"], is_ours=is_ours)
    processes.wait_for_everyone()
    out.mkdir(parents=True, exist_ok=True)
    with claim(out / ".lock") if processes.is_main_process else contextlib.nullcontext():
        run = _Encoding(manifest, out, options, processes)
        run.encode_clips(batch_size, clips_per_shard, device or processes.device)
        run.encode_texts(text_batch_size, device or processes.device)
        report = run.finish()
        if clean and processes.is_main_process:
            for path in find_unnamed_files(out):
                path.unlink()
        return report


def digest_manifest(manifest: str | Path) -> str:
    """Returns the SHA-256 of a manifest, by which an index knows what it was made from."""
    return hashlib.sha256(Path(manifest).read_bytes()).hexdigest()


class _Encoding:
    """One run of `encode_corpus`, of which every process has its own.

    What is missing is found out before any process writes, so all of them find the same.
    """

    def __init__(self, manifest: Path, out: Path, options: EncodingOptions, processes: PartialState):
        self.manifest, self.out, self.options, self.processes = manifest, out, options, processes
        self.vae = embedded.default_model_dir() / "vae" if options.vae is None else Path(options.vae)
        self.made_by = describe_autoencoder(self.vae, options.dtype)
        self.read_by = describe_text_encoder(options.text_encoder, options.max_text_tokens)
        self.manifest_sha256 = digest_manifest(manifest)
        self.records, self.bad_lines = choose_records(manifest, options.split, options.limit)
        if processes.is_main_process:
            for kind in ("latents", "text", "clips", "curves", "index", "bad_clips"):
                for leftover in out.glob(f".{kind}*.tmp"):
                    leftover.unlink()
            take_over_old_latents(out, manifest, self.made_by, self.read_by)
        processes.wait_for_everyone()

        self.clips_before, stats_before, made_by = _read_before(out)
        self.stats = choose_stats(self.records, manifest, options.quality_stats, stats_before)
        self.keys = [self._find_key(record) for record in self.records]
        self.texts = {
            text: make_key("text", text, self.read_by)
            for text in sorted({text for record in self.records for text in self._list_texts(record)})
        }
        # Sound that is gone cannot have changed.
        self.places_of_gone = {_span(r): place for r, place in self.clips_before if made_by == self.made_by}
        self.num_kept = sum(place is not None for place in self._find_places())
        self.text_places = find_entries(out, "text")
        self.num_texts_kept = sum(key in self.text_places for key in self.texts.values())
        self.errors: dict[int, str] = {}

    def encode_clips(self, batch_size: int, clips_per_shard: int, device: str | torch.device) -> None:
        """Encodes the clips whose latents are missing."""
        there = find_entries(self.out, "latents")
        missing = {
            key: (record, key)
            for record, key in zip(self.records, self.keys, strict=True)
            if key is not None and key not in there
        }
        numbers = self._number_shards("latents")
        self.processes.wait_for_everyone()
        if not missing:
            return
        vae, log_mel = load_autoencoder(self.vae, self.options.dtype)
        errors = encode_clips(
            self._share(list(missing.values())),
            self.manifest,
            vae.to(device),
            None if log_mel is None else log_mel.to(device),
            self.out,
            numbers,
            batch_size=batch_size,
            clips_per_shard=clips_per_shard,
            show_progress=self.processes.is_main_process,
        )
        self.errors = dict(gather_object(list(errors.items())))

    def encode_texts(self, batch_size: int, device: str | torch.device) -> None:
        """Encodes the texts whose states are missing."""
        missing = [(text, key) for text, key in self.texts.items() if key not in self.text_places]
        missing.sort(key=lambda pair: len(pair[0]))  # alike lengths pad little
        numbers = self._number_shards("text")
        self.processes.wait_for_everyone()
        if not missing:
            return
        tokenizer, encoder = load_text_encoder(self.options.text_encoder)
        encode_texts(
            self._share(missing),
            tokenizer,
            encoder.to(device),
            self.out,
            numbers,
            batch_size=batch_size,
            max_tokens=self.options.max_text_tokens,
            show_progress=self.processes.is_main_process,
        )

    def finish(self) -> EncodingReport:
        """Writes the list of bad clips and the index, and returns what was done."""
        self.processes.wait_for_everyone()
        pairs = list(zip(self.records, self.keys, self._find_places(), strict=True))
        clips = [(record, place) for record, _, place in pairs if place is not None]
        bad_clips = self.bad_lines + [
            {"id": record.id, "path": record.path, "error": self._find_error(record, key)}
            for record, key, place in pairs
            if place is None
        ]
        if self.processes.is_main_process:
            write_json_lines(self.out / "bad_clips.jsonl", bad_clips)
        if not clips:
            raise ValueError(
                f"none of the {len(self.records)} clips could be encoded; see {self.out / 'bad_clips.jsonl'}."
            )
        if self.processes.is_main_process:
            places = find_entries(self.out, "text")
            texts = sorted({text for record, _ in clips for text in self._list_texts(record)})
            states = {text: places[self.texts[text]] for text in texts}
            write_index(self.out, clips, states, make_curves, self._describe())
        self.processes.wait_for_everyone()
        ids = {record.id for record, _ in clips}
        return EncodingReport(
            num_kept=self.num_kept,
            num_encoded=len(clips) - self.num_kept,
            num_dropped=sum(record.id not in ids for record, _ in self.clips_before),
            num_bad=len(bad_clips),
            num_texts_kept=self.num_texts_kept,
            num_texts_encoded=len(self.texts) - self.num_texts_kept,
        )

    def _find_key(self, record: Record) -> int | None:
        """Returns what the latents of a clip are found by; `None` when its sound is not there."""
        identity = clip_identity(self.manifest, record)
        return None if identity[1] is None else make_key("latents", identity, self.made_by)

    def _find_places(self) -> list[Place | None]:
        """Returns where the latents of each clip are now, `None` where there are none."""
        there = find_entries(self.out, "latents")
        return [
            self.places_of_gone.get(_span(record)) if key is None else there.get(key)
            for record, key in zip(self.records, self.keys, strict=True)
        ]

    def _find_error(self, record: Record, key: int | None) -> str:
        """Returns why a clip has no latents."""
        if key is not None:
            return self.errors.get(key, "its audio changed while it was encoded; run again")
        try:
            return f"there is no file {str(resolve_clip_path(self.manifest, record))!r}"
        except ValueError as error:
            return str(error)

    def _list_texts(self, record: Record) -> list[str]:
        return list_training_texts(record, self.stats, self.options.max_captions)

    def _share(self, work: list) -> list:
        """Returns what this process does of some work."""
        return work[self.processes.process_index :: self.processes.num_processes]

    def _number_shards(self, kind: str) -> Iterator[int]:
        """Yields the numbers of the shards that this process may write."""
        first = next_shard_number(self.out, kind)
        return itertools.count(first + self.processes.process_index, self.processes.num_processes)

    def _describe(self) -> dict[str, Any]:
        """Returns what the index says beside what follows from clips and texts."""
        return {
            "latent_frames_per_second": measure_frame_rate(self.vae),
            "vae_scaling_factor": read_autoencoder_config(self.vae)["scaling_factor"],
            "vae_sha256": self.made_by["vae_sha256"],
            "max_captions": self.options.max_captions,
            "quality": None if self.stats is None else self.stats.to_dict(),
            "manifest": {"path": str(self.manifest.resolve()), "sha256": self.manifest_sha256},
            "options": asdict(self.options),
            "made_by": self.made_by,
            "read_by": self.read_by,
        }


def _span(record: Record) -> tuple[str, float, float]:
    return record.path, record.start_in_s, record.duration_in_s


def _read_before(out: Path) -> tuple[list[Clip], QualityStats | None, dict[str, Any] | None]:
    """Returns clips, thresholds and origin of the latents that the index of a folder knows until now."""
    if not (out / INDEX_NAME).is_file() or read_json(out / INDEX_NAME)["format"] == 1:
        return [], None, None
    folder = LatentFolder(out)
    quality = folder.index["quality"]
    stats = None if quality is None else QualityStats.from_dict(quality)
    return read_clips(folder), stats, folder.index["made_by"]
