"""Writes what is said about the latents in a folder: clips, texts, curves and the index, one clip after the other."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_to_bytes

from qamdt.files import encode_json_line, flush_to_disk, write_atomically, write_json
from qamdt.latent_columns import ColumnBuilder, group_by
from qamdt.latent_folder import FORMAT, INDEX_NAME, Clip
from qamdt.manifest import Record
from qamdt.shards import Place, measure_scaling_factor, read_shape


def write_index(
    folder: Path,
    clips: Sequence[Clip],
    texts: Mapping[str, Place],
    make_curves: Callable[[Record, int], dict[str, torch.Tensor]],
    description: dict[str, Any],
) -> dict[str, Any]:
    """Writes what is said about the latents in a folder, and returns what `index.json` holds.

    Args:
        folder: The folder of shards.
        clips: The clips in order, with the places of their latents; asked for one at a time.
        texts: The places of the states of every text that is cached, the empty one among them.
        make_curves: Returns the curves of a clip by name, given how many latent frames it has, each `(frames,)` or
            `(frames, dims)`; a name that it leaves out is unknown, NaN.
        description: What else the index holds.
    """
    clip_columns, text_columns, records_digest = ColumnBuilder(), ColumnBuilder(), _new_digest()

    def clip_lines() -> Iterator[bytes]:
        offset = 0
        for record, place in clips:
            values = record.to_dict()
            records_digest.update(encode_json_line(values))
            clip_columns.add_clip(offset, record, place)
            line = encode_json_line({"record": values, "latents": vars(place)})
            offset += len(line)
            yield line

    def text_lines() -> Iterator[bytes]:
        for text, place in texts.items():
            text_columns.add_text(text, place)
            yield encode_json_line({"text": text, "states": vars(place)})

    files = {
        "clips": _write_lines(folder, "clips", clip_lines()),
        "texts": _write_lines(folder, "texts", text_lines()),
    }
    (columns, latent_names), (columns_of_texts, text_names) = clip_columns.clips(), text_columns.texts()
    names = {
        name: _write_array(folder / files[name].replace(".jsonl", ".npy"), array)
        for name, array in (("clips", columns), ("texts", columns_of_texts))
    }
    curve_files, curve_shapes = _write_curves(folder, clips, columns["shard"], latent_names, make_curves)
    _, channels, bins = read_shape(folder / latent_names[0], "mean")
    places = (
        Place(latent_names[shard], int(start), 0)
        for shard, start in zip(columns["shard"], columns["start"], strict=True)
    )
    index = {
        "format": FORMAT,
        "num_clips": len(columns),
        "num_latent_frames": int(columns["length"].sum(dtype=np.int64)),
        "shortest_clip_in_frames": int(columns["length"].min()),
        "longest_clip_in_frames": int(columns["length"].max()),
        "latent_channels": channels,
        "latent_bins": bins,
        "scaling_factor": measure_scaling_factor(folder, places),
        "num_texts": len(columns_of_texts),
        "text_dim": read_shape(folder / text_names[0], "hidden_states")[1],
        "curves": curve_shapes,
        "records_digest": records_digest.hexdigest(),
        **description,
        "files": {**files, "curves": curve_files},
        "columns": {**names, "latents": latent_names, "text": text_names},
    }
    write_json(folder / INDEX_NAME, index)
    return index


def _write_curves(
    folder: Path,
    clips: Sequence[Clip],
    shards: np.ndarray,
    names: list[str],
    make_curves: Callable[[Record, int], dict[str, torch.Tensor]],
) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Writes the curves of the clips in each shard; returns the file of each shard, and what follows the frames."""
    files, shapes = {}, {}
    for number, members in group_by(shards):
        some = [clips[clip] for clip in members.tolist()]
        curves = [make_curves(record, place.length) for record, place in some]
        found = {name: curve.shape[1:] for curves_of_clip in curves for name, curve in curves_of_clip.items()}
        joined = {}
        for name, shape in found.items():
            parts = [
                curves_of_clip.get(name, torch.full((place.length, *shape), torch.nan))
                for curves_of_clip, (_, place) in zip(curves, some, strict=True)
            ]
            joined[name] = torch.cat(parts).float().contiguous()
        if joined:
            files[names[number]] = _write_named(folder, f"curves-{number:05d}", ".safetensors", save_to_bytes(joined))
        shapes |= {name: list(shape) for name, shape in found.items()}
    return files, dict(sorted(shapes.items()))


def _write_lines(folder: Path, stem: str, lines: Iterable[bytes]) -> str:
    """Writes a file whose name says what is in it, line by line, and returns the name."""
    digest, temporary = _new_digest(), folder / f".{stem}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            for line in lines:
                digest.update(line)
                file.write(line)
        name = f"{stem}-{digest.hexdigest()}.jsonl"
        if not (folder / name).is_file():
            flush_to_disk(temporary)
            os.replace(temporary, folder / name)
        return name
    finally:
        temporary.unlink(missing_ok=True)


def _write_array(path: Path, array: np.ndarray) -> str:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    if not path.is_file():
        write_atomically(path, write)
    return path.name


def _write_named(folder: Path, stem: str, suffix: str, content: bytes) -> str:
    """Writes a file whose name says what is in it, and returns the name."""
    digest = _new_digest()
    digest.update(content)
    name = f"{stem}-{digest.hexdigest()}{suffix}"
    if not (folder / name).is_file():
        write_atomically(folder / name, lambda file: file.write_bytes(content))
    return name


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=6)
