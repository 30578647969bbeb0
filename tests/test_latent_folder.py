"""What is written into a folder of encoded music is what is read from it, from a disk and from a URL."""

import json
import math

import pytest
import torch

from qamdt.files import write_json
from qamdt.latent_folder import (
    INDEX_NAME,
    LatentReader,
    TextReader,
    find_unnamed_files,
    open_folder,
)
from qamdt.manifest import Record
from qamdt.shards import find_entries, list_shards, measure_scaling_factor, next_shard_number, write_latent_shard


LENGTHS = (4, 7, 5, 6, 3)


def make_clips():
    """Five clips of different lengths whose values tell clip and frame."""
    records = [
        Record(id=f"clip-{i}", path=f"{i}.wav", duration_in_s=1.0, captions=(f"song {i}",))
        for i in range(len(LENGTHS))
    ]
    means = [
        (10 * i + torch.arange(length).float())[None, :, None].expand(2, -1, 3) for i, length in enumerate(LENGTHS)
    ]
    curves = {
        "clip-1": {"quality": 1 + torch.arange(7) / 10},
        "clip-3": {"quality": torch.full((6,), 4.0), "music": torch.arange(12.0).view(6, 2)},
    }
    return records, means, curves


@pytest.fixture
def folder(tmp_path, write_latents):
    records, means, curves = make_clips()
    texts = {"": torch.zeros(1, 4), "a": torch.full((3, 4), 1.0), "b": torch.full((2, 4), 2.0)}
    stds = [torch.full_like(mean, 0.5) for mean in means]
    write_latents(tmp_path / "latents", records, means, stds, texts, curves=curves, clips_per_shard=2)
    return tmp_path / "latents"


@pytest.mark.parametrize("where", ["disk", "url"])
def test_crops_curves_and_texts_are_those_that_were_written(folder, tmp_path, where):
    opened = open_folder(folder if where == "disk" else f"file://{folder}", tmp_path / "cache")
    reader, (records, means, curves) = LatentReader(opened), make_clips()
    assert list(reader.records) == records
    assert reader.lengths.tolist() == list(LENGTHS)
    assert reader.shards.tolist() == [0, 0, 1, 1, 2]
    for clip, length in enumerate(LENGTHS):
        for start in range(length - 2):
            mean, std, found = reader.read(clip, start, 3)
            torch.testing.assert_close(mean, means[clip][:, start : start + 3])
            assert (std == 0.5).all()
            assert {name: list(curve.shape) for name, curve in found.items()} == {"quality": [3], "music": [3, 2]}
            for name, curve in found.items():
                whole = curves.get(f"clip-{clip}", {}).get(name)
                expected = torch.full_like(curve, math.nan) if whole is None else whole[start : start + 3]
                torch.testing.assert_close(curve, expected, equal_nan=True)
    texts = TextReader(opened)
    assert (texts.read("a").tolist(), len(texts.read("b"))) == ([[1.0] * 4] * 3, 2)
    with pytest.raises(ValueError, match="the crop 2\\+3 leaves clip 'clip-0', which has 4"):
        reader.read(0, 2, 3)
    with pytest.raises(ValueError, match="the text 'c' has no cached states in"):
        texts.read("c")


def test_the_scaling_factor_is_that_of_the_clips_in_question(tmp_path):
    means = [torch.randn(2, 50, 3) * (1 + i) + i for i in range(3)]
    stds = [torch.full_like(mean, 0.3) for mean in means]
    write_latent_shard(tmp_path, [1, 2], means[:2], stds[:2])
    write_latent_shard(tmp_path, [3], means[2:], stds[2:])
    places = find_entries(tmp_path, "latents")
    for keys in ([1], [2], [1, 3], [1, 2, 3]):
        values = torch.stack([means[key - 1] for key in keys])
        expected = (values.var(correction=0) + 0.3**2) ** -0.5
        measured = measure_scaling_factor(tmp_path, [places[key] for key in keys])
        assert measured == pytest.approx(expected.item(), rel=1e-3)


def test_another_index_leaves_the_files_of_the_first_alone(folder, write_latents):
    before = LatentReader(folder)
    records, means, curves = make_clips()
    texts, stds = {"": torch.zeros(1, 4)}, [torch.full_like(mean, 0.5) for mean in means]
    curves["clip-3"]["quality"] = torch.full((6,), 2.0)
    write_latents(folder, records, means, stds, texts, curves=curves)
    assert before.read(3, 0, 6)[2]["quality"].tolist() == [4.0] * 6
    assert LatentReader(folder).read(3, 0, 6)[2]["quality"].tolist() == [2.0] * 6
    unnamed = find_unnamed_files(folder)
    assert {path.name.split("-")[0] for path in unnamed} == {"clips", "curves", "latents", "text", "texts"}
    for path in unnamed:
        path.unlink()
    assert LatentReader(folder).read(3, 0, 6)[2]["quality"].tolist() == [2.0] * 6
    assert find_unnamed_files(folder) == []


def test_files_behind_a_url_are_fetched_once_whatever_the_index_says(folder, tmp_path, write_latents):
    url, cache = f"file://{folder}", tmp_path / "cache"
    LatentReader(open_folder(url, cache)).read(0, 0, 3)
    (fetched,) = cache.glob("*/latents-*")
    fetched.touch()
    fetched_at = fetched.stat().st_mtime_ns
    index = json.loads((folder / INDEX_NAME).read_text())
    write_json(folder / INDEX_NAME, index | {"max_captions": 3})
    opened = open_folder(url, cache)
    LatentReader(opened).read(0, 0, 3)
    assert opened.index["max_captions"] == 3
    assert fetched.stat().st_mtime_ns == fetched_at


def test_damaged_and_missing_files_are_named(folder):
    second = list_shards(folder, "latents")[1]
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(RuntimeError, match=f"{second.name} is damaged .*; delete it and encode again"):
        LatentReader(folder)
    with pytest.raises(RuntimeError, match=f"{second.name} is damaged .*; delete it and encode again"):
        find_entries(folder, "latents")
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"{second.name} is not there, but index.json names it; run"):
        LatentReader(folder)
    second.write_bytes(content)
    clips = folder / open_folder(folder).index["files"]["clips"]
    clips.write_bytes(clips.read_bytes()[:-5])
    with pytest.raises(RuntimeError, match="lacks lines that index.json counts; delete it and encode again"):
        LatentReader(folder)


def test_latents_that_are_not_finite_are_named(tmp_path, write_latents):
    mean = torch.full((2, 8, 3), math.inf)
    record = Record(id="broken", path="b.wav", duration_in_s=1.0)
    write_latents(tmp_path, [record], [mean], [torch.zeros_like(mean)], {"": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match="clip 'broken' in .* has latents that are not finite"):
        LatentReader(tmp_path).read(0, 0, 8)


@pytest.mark.parametrize("version", [1, 3])
def test_a_folder_of_another_format_is_refused_by_name(folder, version):
    write_json(folder / INDEX_NAME, json.loads((folder / INDEX_NAME).read_text()) | {"format": version})
    with pytest.raises(
        ValueError, match=f"has format {version}, and this version reads format 2; run `python -m data"
    ):
        LatentReader(folder)


def test_shards_are_numbered_on_and_named_by_their_content(tmp_path):
    mean = torch.zeros(2, 4, 3)
    for keys in ([1, 2], [3], [1, 2]):
        write_latent_shard(tmp_path, keys, [mean] * len(keys), [mean] * len(keys))
    first, second, third = (path.name.split("-") for path in list_shards(tmp_path, "latents"))
    assert [parts[1] for parts in (first, second, third)] == ["00000", "00001", "00002"]
    assert first[2] == third[2] != second[2]
    assert next_shard_number(tmp_path, "latents") == 3
    assert next_shard_number(tmp_path, "text") == 0
