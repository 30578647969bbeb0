"""Latents of folders that an earlier version wrote (format 1) are taken over: nothing is encoded again.

There, a shard held its clips' curves too, beside a list of records, and a clip was known by its id alone. Its latents get
a key here if its sound is older than they are, so that it is what they were made of.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data_prep.latent_encoders import describe_text_encoder
from qamdt.files import read_json, read_json_lines
from qamdt.keyed_rows import make_key
from qamdt.manifest import Record, clip_identity, resolve_clip_path
from qamdt.shards import find_entries, write_latent_shard, write_text_shard


def take_over_old_latents(folder: Path, manifest: Path, made_by: dict[str, Any], read_by: dict[str, Any]) -> None:
    """Writes the old shards of a folder as new ones and removes them.

    Shards with clips whose sound is not there stay, for another time. Texts are taken over where the text encoder is the
    embedded one, as others were known by name alone.

    Args:
        folder: The folder of encoded music.
        manifest: The manifest that its clips came from, or another in the same folder.
        made_by: What latents depend on today beside the clip.
        read_by: What the states of texts depend on today beside the text.
    """
    if not (folder / "settings.json").is_file():
        return
    settings = read_json(folder / "settings.json")
    for path in _list_old(folder, "latents"):
        _take_over_clips(path, manifest, made_by | {"vae_sha256": settings["vae_sha256"]})
    if settings["text_encoder"] == "embedded" and read_by == describe_text_encoder(None, 128):
        for path in _list_old(folder, "text"):
            _take_over_texts(path, read_by)
    if not _list_old(folder, "latents"):
        (folder / "settings.json").unlink()


def _list_old(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"{kind}-*") if re.fullmatch(rf"{kind}-\d+\.safetensors", path.name))


def _take_over_clips(path: Path, manifest: Path, made_by: dict[str, Any]) -> None:
    """Writes one old shard of clips as a new one, and removes it unless the sound of a clip is not there."""
    lines = path.with_name(path.name.replace("latents-", "records-")).with_suffix(".jsonl")
    records = [Record.from_dict(values) for values in read_json_lines(lines)]
    tensors = load_file(path)
    made_by = made_by | {"dtype": _precision(tensors["mean"])}
    known = find_entries(path.parent, "latents")
    keys, means, stds, is_whole = [], [], [], True
    for number, record in enumerate(records):
        identity = clip_identity(manifest, record)
        if identity[1] is None:
            is_whole = False
            continue
        key = make_key("latents", identity, made_by)
        is_older = resolve_clip_path(manifest, record).stat().st_mtime_ns < path.stat().st_mtime_ns
        if is_older and key not in known:
            rows = slice(*tensors["offsets"][number : number + 2].tolist())
            keys.append(key)
            means.append(tensors["mean"][rows].permute(1, 0, 2))
            stds.append(tensors["std"][rows].permute(1, 0, 2))
    if keys:
        write_latent_shard(path.parent, keys, means, stds)
    if is_whole:
        path.unlink()
        lines.unlink()


def _precision(mean: torch.Tensor) -> str:
    """Returns what an autoencoder computed in, which format 1 did not say: bfloat16 leaves the last bits empty."""
    some = mean[:4096]
    return "bfloat16" if torch.equal(some.bfloat16().half(), some) else "float32"


def _take_over_texts(path: Path, read_by: dict[str, Any]) -> None:
    """Writes one old shard of texts as a new one, and removes it."""
    lines = path.with_name(path.name.replace("text-", "texts-")).with_suffix(".jsonl")
    texts, tensors = list(read_json_lines(lines)), load_file(path)
    known = find_entries(path.parent, "text")
    keys = [make_key("text", text, read_by) for text in texts]
    states = torch.tensor_split(tensors["hidden_states"], tensors["offsets"][1:-1])
    new = [(key, state) for key, state in zip(keys, states, strict=True) if key not in known]
    if new:
        write_text_shard(path.parent, *map(list, zip(*new, strict=True)))
    path.unlink()
    lines.unlink()
