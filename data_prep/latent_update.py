"""Brings a folder of encoded music up to date with a manifest: what is missing is encoded, the rest is kept.

Latents and text states are found by all that they depend on: the clip's sound and span and the autoencoder, the text and
the text encoder. Everything else that training reads, the index with clips, texts and curves, is written anew each time.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from data_prep.corpus_table import PlacedClips, TextTable, choose_records
from data_prep.latent_encoders import (
    describe_autoencoder,
    describe_text_encoder,
    load_autoencoder,
    load_text_encoder,
    measure_frame_rate,
    read_autoencoder_config,
)
from data_prep.latent_index import choose_stats, list_training_texts, make_curves
from data_prep.latent_units import Unit, encode_clips, encode_texts
from data_prep.old_latents import take_over_old_latents
from qamdt import embedded
from qamdt.files import claim, read_json, write_json, write_json_lines
from qamdt.keyed_rows import hash_text, make_key
from qamdt.latent_columns import group_by
from qamdt.latent_folder import INDEX_NAME, LatentFolder, find_unnamed_files, iterate_clips
from qamdt.latent_writing import write_index
from qamdt.manifest import Record, clip_identity, resolve_clip_path
from qamdt.outputs import check_output_folder, has_fields
from qamdt.precision import check_device
from qamdt.quality import QualityStats
from qamdt.shards import UNFINISHED, Place, find_entries


TEXTS_PER_SHARD = 4096
TEXT_MODES = ("cached", "online")


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
        text: "cached", the states of every text that training can draw are kept; or "online", none are, and training
            runs the text encoder (`data.text=online`).
    """

    vae: str | None = None
    text_encoder: str | None = None
    quality_stats: str | None = None
    split: str | None = None
    limit: int | None = None
    max_captions: int | None = None
    max_text_tokens: int = 128
    dtype: str = "float32"
    text: str = "cached"

    def __post_init__(self):
        if self.text not in TEXT_MODES:
            raise ValueError(f"`text` must be one of {TEXT_MODES}, got {self.text!r}.")

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
    shard: tuple[int, int] | None = None,
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
        shard: Which part of the work to do, as `(number from 0, how many)`; then nothing is said about the clips until the
            shards are merged: by the same call without it, or by `data_prep.latent_merge`.
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
    if shard is not None and (processes.num_processes > 1 or clean):
        raise ValueError(
            "`shard` is for jobs of one process, and none of them knows what is to be cleaned; leave it out."
        )
    is_ours = (out / ".lock").is_file() or has_fields(out / INDEX_NAME, ["format", "num_clips"])
    check_output_folder(out, [INDEX_NAME, "bad_clips.jsonl"], is_ours=is_ours)
    processes.wait_for_everyone()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if processes.is_main_process:
            stack.enter_context(claim(out / ".lock", shared=shard is not None))
        if shard is not None:
            stack.enter_context(claim(shard_path(out, shard, ".lock")))
        run = Encoding(manifest, out, options, processes, shard)
        run.encode_clips(batch_size, clips_per_shard, device or processes.device)
        run.encode_texts(text_batch_size, device or processes.device)
        if shard is not None:
            return run.leave_note()
        report = run.finish()
        if processes.is_main_process:
            for path in list_notes(out):
                path.unlink()
            for path in find_unnamed_files(out) if clean else ():
                path.unlink()
        return report


def digest_manifest(manifest: str | Path) -> str:
    """Returns the SHA-256 of a manifest, by which an index knows what it was made from."""
    with Path(manifest).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Encoding:
    """One run of `encode_corpus`, of which every process has its own.

    What is missing is found out before any process writes, so all of them find the same.
    """

    def __init__(
        self,
        manifest: Path,
        out: Path,
        options: EncodingOptions,
        processes: PartialState,
        shard: tuple[int, int] | None = None,
    ):
        self.manifest, self.out, self.options, self.processes = manifest, out, options, processes
        self.share = shard or (processes.process_index, processes.num_processes)
        self.shard = shard
        self.vae = embedded.default_model_dir() / "vae" if options.vae is None else Path(options.vae)
        self.made_by = describe_autoencoder(self.vae, options.dtype)
        self.read_by = describe_text_encoder(options.text_encoder, options.max_text_tokens)
        self.manifest_sha256 = digest_manifest(manifest)
        self.records, self.bad_lines = choose_records(manifest, options.split, options.limit)
        if processes.is_main_process and shard is None:
            for kind in (UNFINISHED, "latents", "text", "clips", "curves", "index", "bad_clips"):
                for leftover in out.glob(f".{kind}*.tmp"):
                    leftover.unlink()
            take_over_old_latents(out, manifest, self.made_by, self.read_by)
        processes.wait_for_everyone()

        stats_before = _read_stats_before(out)
        self.stats = choose_stats(self.records, manifest, options.quality_stats, stats_before)
        self.keys, self.is_gone = self._find_keys()
        entries = find_entries(out, "latents")
        self.ids_before, self.places_of_gone = self._read_before()
        self.is_kept = entries.have(self.keys) & ~self.is_gone
        self.is_kept[list(self.places_of_gone)] = True
        self.texts = self._list_texts(np.arange(len(self.records)))
        text_entries = find_entries(out, "text")
        self.is_text_kept = text_entries.have(self.texts.keys)
        self.errors: dict[int, str] = {}

    def encode_clips(self, batch_size: int, clips_per_shard: int, device: str | torch.device) -> None:
        """Encodes the clips whose latents are missing."""
        self.processes.wait_for_everyone()
        positions = np.flatnonzero(~self.is_gone)
        _, first = np.unique(self.keys[positions], return_index=True)
        positions = positions[np.sort(first)]
        units, num_missing = self._cut_units(
            self.keys[positions],
            self.is_kept[positions],
            clips_per_shard,
            lambda place: self.records[positions[place]],
        )
        if num_missing:
            vae, log_mel = load_autoencoder(self.vae, self.options.dtype)
            self.errors = encode_clips(
                units,
                self.manifest,
                vae.to(device),
                None if log_mel is None else log_mel.to(device),
                self.out,
                batch_size=batch_size,
                num_clips=num_missing,
                show_progress=self.processes.is_main_process,
            )
        self.errors = dict(gather_object(list(self.errors.items())))

    def encode_texts(self, batch_size: int, device: str | torch.device) -> None:
        """Encodes the texts whose states are missing."""
        self.processes.wait_for_everyone()
        units, num_missing = self._cut_units(self.texts.keys, self.is_text_kept, TEXTS_PER_SHARD, self.texts.read)
        if not num_missing:
            return
        tokenizer, encoder = load_text_encoder(self.options.text_encoder)
        encode_texts(
            units,
            tokenizer,
            encoder.to(device),
            self.out,
            batch_size=batch_size,
            max_tokens=self.options.max_text_tokens,
            num_texts=num_missing,
            show_progress=self.processes.is_main_process,
        )

    def _cut_units(
        self, keys: np.ndarray, is_kept: np.ndarray, size: int, read: Callable[[int], Record | str]
    ) -> tuple[Iterator[Unit], int]:
        """Returns what of this process's units is missing, and how many clips or texts that are."""
        number, count = self.share
        places = np.flatnonzero(~is_kept)
        places = places[places // size % count == number]

        def units() -> Iterator[Unit]:
            for unit, members in group_by(places // size):
                some = places[members]
                yield Unit(unit, keys[some].tolist(), lambda place, some=some: read(int(some[place])))

        return units(), len(places)

    def leave_note(self) -> EncodingReport:
        """Writes down that this shard is done, and what could not be, and returns what was done by it."""
        note = self.describe_job() | {"errors": [[f"{key:016x}", reason] for key, reason in self.errors.items()]}
        write_json(shard_path(self.out, self.shard, ".json"), note)
        return self._report(find_entries(self.out, "latents").have(self.keys), num_bad=len(self.errors))

    def describe_job(self) -> dict[str, Any]:
        """Returns what all shards of a job have in common."""
        return {
            "manifest": str(self.manifest.resolve()),
            "manifest_sha256": self.manifest_sha256,
            "options": asdict(self.options),
            "made_by": self.made_by,
            "read_by": self.read_by,
        }

    def finish(self) -> EncodingReport:
        """Writes the list of bad clips and the index, and returns what was done."""
        self.processes.wait_for_everyone()
        clips = self.find_clips()
        is_there = np.zeros(len(self.records), bool)
        is_there[clips.positions] = True
        bad_clips = self.bad_lines + [self._describe_bad(int(position)) for position in np.flatnonzero(~is_there)]
        if self.processes.is_main_process:
            write_json_lines(self.out / "bad_clips.jsonl", bad_clips)
        if not len(clips):
            raise ValueError(
                f"none of the {len(self.records)} clips could be encoded; see {self.out / 'bad_clips.jsonl'}."
            )
        if self.processes.is_main_process:
            texts = self.texts if len(clips) == len(self.records) else self._list_texts(clips.positions)
            texts.entries = find_entries(self.out, "text")
            write_index(self.out, clips, texts, make_curves, self._describe())
        self.processes.wait_for_everyone()
        return self._report(is_there, num_bad=len(bad_clips))

    def find_clips(self) -> PlacedClips:
        """Returns the clips whose latents are there now."""
        return PlacedClips(self.records, self.keys, find_entries(self.out, "latents"), self.places_of_gone)

    def _report(self, is_there: np.ndarray, *, num_bad: int) -> EncodingReport:
        dropped = self.ids_before
        if len(dropped):
            there = (hash_text(self.records[int(position)].id) for position in np.flatnonzero(is_there))
            dropped = dropped[~np.isin(dropped, np.fromiter(there, np.uint64))]
        return EncodingReport(
            num_kept=int(self.is_kept.sum()),
            num_encoded=int((is_there & ~self.is_kept).sum()),
            num_dropped=len(dropped),
            num_bad=num_bad,
            num_texts_kept=int(self.is_text_kept.sum()),
            num_texts_encoded=int((~self.is_text_kept).sum()),
        )

    def _find_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what the latents of each clip are found by, and which clips have none as their sound is not there."""
        keys = np.zeros(len(self.records), np.uint64)
        is_gone = np.zeros(len(self.records), bool)
        for position, record in enumerate(self.records):
            identity = clip_identity(self.manifest, record)
            is_gone[position] = identity[1] is None
            keys[position] = 0 if identity[1] is None else make_key("latents", identity, self.made_by)
        return keys, is_gone

    def _read_before(self) -> tuple[np.ndarray, dict[int, Place]]:
        """Returns the ids that the index knows until now, and the latents it has of clips whose sound is gone.

        Sound that is gone cannot have changed.
        """
        if not _has_index(self.out):
            return np.zeros(0, np.uint64), {}
        folder, ids = LatentFolder(self.out), array("Q")
        gone = {_span(self.records[int(position)]): int(position) for position in np.flatnonzero(self.is_gone)}
        is_same = folder.index["made_by"] == self.made_by
        places = {}
        for record, place in iterate_clips(folder):
            ids.append(hash_text(record.id))
            if is_same and gone and _span(record) in gone:
                places[_span(record)] = place
        found = {position: places[_span(self.records[position])] for position in self._list_gone(places)}
        return np.array(ids, np.uint64), found

    def _list_gone(self, places: dict[tuple, Place]) -> list[int]:
        positions = map(int, np.flatnonzero(self.is_gone))
        return [position for position in positions if _span(self.records[position]) in places]

    def _describe_bad(self, position: int) -> dict[str, str]:
        record = self.records[position]
        key = None if self.is_gone[position] else int(self.keys[position])
        return {"id": record.id, "path": record.path, "error": self._find_error(record, key)}

    def _find_error(self, record: Record, key: int | None) -> str:
        """Returns why a clip has no latents."""
        if key is not None:
            return self.errors.get(key, "its audio changed while it was encoded; run again")
        try:
            return f"there is no file {str(resolve_clip_path(self.manifest, record))!r}"
        except ValueError as error:
            return str(error)

    def _list_texts(self, positions: np.ndarray) -> TextTable:
        """Returns the texts that training can draw for some clips, or the empty one alone where it encodes texts itself."""
        is_online = self.options.text == "online"
        return TextTable(
            self.records,
            () if is_online else positions,
            lambda record: list_training_texts(record, self.stats, self.options.max_captions),
            self.read_by,
        )

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


def shard_path(out: Path, shard: tuple[int, int], suffix: str) -> Path:
    """Returns the file in which one of several jobs notes that it is done (.json), or by which it claims its share."""
    dot = "." if suffix == ".lock" else ""
    return out / f"{dot}shard-{shard[0]:05d}-of-{shard[1]:05d}{suffix}"


def list_notes(out: Path) -> list[Path]:
    """Returns all that jobs have left in a folder of encoded music beside latents and text states."""
    return sorted([*out.glob("shard-*-of-*.json"), *out.glob(".shard-*-of-*.lock")])


def _span(record: Record) -> tuple[str, float, float]:
    return record.path, record.start_in_s, record.duration_in_s


def _has_index(out: Path) -> bool:
    return (out / INDEX_NAME).is_file() and read_json(out / INDEX_NAME)["format"] != 1


def _read_stats_before(out: Path) -> QualityStats | None:
    """Returns the thresholds that the index of a folder knows until now."""
    quality = LatentFolder(out).index["quality"] if _has_index(out) else None
    return None if quality is None else QualityStats.from_dict(quality)
