"""The books of caption refinement: keys, manifests with bad lines, limits and money."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.refine.jobs import RefineSettings, identify_captioners, make_keys
from data_prep.refine.llm_client import ModelConfig
from data_prep.refine.manifest_rows import ManifestRows
from data_prep.refine.rate_limit import RateLimiter
from data_prep.refine.spending import CostLimitReached, Prices, Spending, Usage, sum_usage
from data_prep.refine.thresholds import Thresholds
from qamdt.keyed_rows import KeyedRows, make_row
from qamdt.manifest import Record, write_manifest


ROOT = Path(__file__).resolve().parent.parent


def test_a_setting_changes_the_keys_of_its_step_and_the_later_ones_alone():
    record = Record(id="a", path="a.wav", duration_in_s=1.0, captions=("slow jazz",))
    settings = RefineSettings(thresholds=Thresholds(audio_text=0.1), model=ModelConfig(model="m"))

    def changed(other, clap="clap", prompt=0, clip=record, audio=1, captioners=("tags",)):
        keys = make_keys(record, [1], settings, ["tags"], "clap", 0)
        others = make_keys(clip, [audio], other, list(captioners), clap, prompt)
        return [step for step in keys if keys[step] != others[step]]

    assert changed(settings) == []
    assert changed(settings, clap="other") == ["generate", "align", "fuse", "check"]
    assert changed(settings, audio=2) == ["generate", "align", "fuse", "check"]
    assert changed(settings, captioners=["tags", "measured"]) == ["generate", "align", "fuse", "check"]
    assert changed(settings, clip=replace(record, captions=("fast jazz",))) == ["generate", "align", "fuse", "check"]
    assert changed(replace(settings, thresholds=Thresholds(audio_text=0.2))) == ["align", "fuse", "check"]
    assert changed(replace(settings, model=ModelConfig(model="n"))) == ["fuse", "check"]
    assert changed(replace(settings, num_paraphrases=3)) == ["fuse", "check"]
    assert changed(settings, prompt=1) == ["fuse", "check"]
    assert changed(settings, clip=replace(record, quality_score=3.0, quality_scorer="x")) == []


def test_a_captioner_that_was_trained_on_is_another_one(tmp_path):
    (tmp_path / "captioner").mkdir()
    weights = tmp_path / "captioner" / "model.safetensors"
    weights.write_bytes(b"before")
    settings = RefineSettings(captioners=("measured", str(weights.parent), "name/on-the-hub"))
    before = identify_captioners(settings)
    assert before == identify_captioners(settings)
    assert before[0] == ["measured"]
    weights.write_bytes(b"after training")
    assert identify_captioners(settings) != before


def test_bad_lines_of_a_manifest_are_told_one_by_one(tmp_path):
    path = tmp_path / "manifest.jsonl"
    good = [Record(id=name, path=f"{name}.wav", duration_in_s=1.0) for name in "ab"]
    write_manifest(path, good)
    lines = [b'{"id": "c", "path": "\xff.wav", "duration_in_s": 1}', b"[1]", b"{", b'{"id": 3}', b"", b'{"id": "d"}']
    with path.open("ab") as file:
        file.write(b"\n".join(lines) + b"\n" + path.read_bytes().splitlines()[1] + b"\n")
        file.write(b'{"id": "e", "path": "../outside.ogg", "duration_in_s": 1}\n')
        file.write(b'{"id": "f", "path": "f.wav", "duration_in_s": 1, "captions": "one string"}\n')
    rows = ManifestRows(path)
    assert [record.id for _, record in rows.read_good(range(len(rows)))] == ["a", "b"]
    reasons = [
        "not UTF-8",
        "expected a JSON object",
        "Expecting",
        "are missing",
        "are missing",
        "was used in line 2 already",
        "must be relative and stay inside the manifest's folder",
        "must be a list of strings, got a string; write it as",
    ]
    for position, reason in enumerate(reasons, start=2):
        with pytest.raises(ValueError, match=reason):
            rows.read(position)


def test_a_manifest_without_clips_is_refused(tmp_path):
    path = tmp_path / "manifest.jsonl"
    with pytest.raises(FileNotFoundError, match="there is no manifest"):
        ManifestRows(path)
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no clip"):
        ManifestRows(path)


def time_starts(limiter, count, tokens=1):
    """Returns when requests start, in seconds from the first one."""

    async def start():
        moments = []
        for _ in range(count):
            await limiter.acquire(tokens)
            moments.append(time.monotonic())
        return [moment - moments[0] for moment in moments]

    return asyncio.run(start())


def test_requests_are_spaced_evenly():
    starts = time_starts(RateLimiter(requests_per_minute=1200), 5)
    assert all(start >= 0.05 * number - 1e-3 for number, start in enumerate(starts))


def test_tokens_are_counted_and_corrected():
    limiter = RateLimiter(tokens_per_minute=60_000)
    assert time_starts(limiter, 3, tokens=50)[-1] >= 0.1 - 1e-3
    limiter = RateLimiter(tokens_per_minute=60)
    asyncio.run(limiter.acquire(1000))
    limiter.settle(1000, 0)  # it took none of them, so nobody has to wait 1000 seconds
    asyncio.run(asyncio.wait_for(limiter.acquire(1), timeout=120))


def test_a_pause_holds_for_all():
    limiter = RateLimiter()
    limiter.pause(0.2)
    started = time.monotonic()
    asyncio.run(limiter.acquire(1))
    assert time.monotonic() - started >= 0.2 - 1e-3


def test_limits_below_zero_are_refused():
    with pytest.raises(ValueError, match="`requests_per_minute` must be above zero"):
        RateLimiter(requests_per_minute=0)


def test_money_is_set_aside_before_it_is_spent():
    spending = Spending(Prices(input_price=1.0, output_price=2.0), max_cost=10e-6, usage=Usage(2, 1, 1))
    assert spending.cost == pytest.approx(4e-6)
    reserved = spending.reserve(Usage(2, 2, 1))
    with pytest.raises(CostLimitReached, match="`max_cost`"):
        spending.reserve(Usage(1, 0, 1))
    spending.settle(reserved, Usage(1, 0, 1))
    assert spending.cost == pytest.approx(5e-6)
    assert spending.reserve(Usage(5, 0, 1)) == pytest.approx(5e-6)


def test_a_limit_without_prices_is_refused():
    with pytest.raises(ValueError, match="give `input_price`"):
        Spending(max_cost=1.0)


def test_usage_of_failed_and_repeated_rows_counts(tmp_path):
    rows = KeyedRows(tmp_path, "fuse")
    rows.append(make_row(1, "a", failure="no answer") | {"usage": Usage(10, 0, 1).to_dict()})
    rows.append(make_row(1, "a") | {"usage": Usage(20, 3, 1).to_dict()})
    rows.append(make_row(2, "b"))
    assert sum_usage(rows.history()) == Usage(30, 3, 2)
