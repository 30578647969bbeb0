"""The books of caption refinement: rows that survive kills, manifests with bad lines, keys, limits and money."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.refine.align import Thresholds
from data_prep.refine.jobs import RefineSettings, make_keys, make_row
from data_prep.refine.llm_client import ModelConfig
from data_prep.refine.manifest_rows import ManifestRows
from data_prep.refine.rate_limit import RateLimiter
from data_prep.refine.spending import CostLimitReached, Prices, Spending, Usage
from data_prep.refine.store import DONE, FAILED, RowStore, make_key
from qamdt.manifest import Record, write_manifest


ROOT = Path(__file__).resolve().parent.parent


def test_a_torn_last_line_is_cut_off_and_its_row_is_open_again(tmp_path):
    path = tmp_path / "fuse.jsonl"
    path.write_text(json.dumps(make_row(1, "a")) + "\n" + json.dumps(make_row(2, "b"))[:-9])
    store = RowStore(tmp_path, "fuse")
    assert (store.status(1), store.status(2)) == (DONE, None)
    store.append(make_row(2, "b"))
    store.refresh()
    assert store.status(2) == DONE
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_done_row_outweighs_failed_ones_and_the_last_done_one_counts(tmp_path):
    store = RowStore(tmp_path, "fuse")
    store.append(make_row(7, "a", failure="first") | {"n": 0})
    store.refresh()
    assert (store.status(7), store.read(7)["reason"]) == (FAILED, "first")
    for n in (1, 2):
        store.append(make_row(7, "a") | {"n": n})
    store.append(make_row(7, "a", failure="late") | {"n": 3})
    store.refresh()
    assert (store.status(7), store.read(7)["n"], len(store)) == (DONE, 2, 1)


def test_shards_write_files_of_their_own_and_read_all(tmp_path):
    for number in range(3):
        RowStore(tmp_path, "fuse", f"-{number}").append(
            make_row(number, f"clip-{number}") | {"usage": Usage(10, number, 1).to_dict()}
        )
    store = RowStore(tmp_path, "fuse")
    assert [store.read(number)["id"] for number in range(3)] == ["clip-0", "clip-1", "clip-2"]
    assert store.usage == Usage(30, 3, 3)


def test_two_processes_cannot_write_one_store(tmp_path):
    store = RowStore(tmp_path, "fuse")
    store.open()
    with pytest.raises(RuntimeError, match="another process is writing"):
        RowStore(tmp_path, "fuse").open()


def test_what_another_process_wrote_before_we_could_is_seen(tmp_path):
    late = RowStore(tmp_path, "fuse")
    first = RowStore(tmp_path, "fuse")
    first.append(make_row(1, "a"))
    first.close()
    assert late.status(1) is None
    late.open()
    assert late.status(1) == DONE


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "fuse.jsonl").write_text('{"key": "01", "id": "a", "status": "done"}\nnonsense\n')
    with pytest.raises(ValueError, match=r"fuse\.jsonl, line 2: .*delete this line"):
        RowStore(tmp_path, "fuse")


def test_text_that_utf8_cannot_hold_is_stored(tmp_path):
    store = RowStore(tmp_path, "fuse")
    store.append(make_row(1, "a") | {"text": "\ud800 é"})
    store.refresh()
    assert store.read(1)["text"] == "\ud800 é"


def test_keys_are_the_same_everywhere_and_differ_by_content():
    program = "from data_prep.refine.store import make_key; print(make_key('a', [1, 2.5], {'y': None, 'x': 'é'}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(found.stdout) == make_key("a", [1, 2.5], {"x": "é", "y": None})
    assert len({make_key("a", "b"), make_key("ab"), make_key(["a", "b"]), make_key("b", "a")}) == 4


def test_a_setting_changes_the_keys_of_its_step_and_the_later_ones_alone():
    record = Record(id="a", path="a.wav", duration_in_s=1.0, captions=("slow jazz",))
    settings = RefineSettings(thresholds=Thresholds(audio_text=0.1), model=ModelConfig(model="m"))

    def changed(other, clap="clap", prompt=0, clip=record):
        keys = make_keys(record, settings, "clap", 0)
        others = make_keys(clip, other, clap, prompt)
        return [step for step in keys if keys[step] != others[step]]

    assert changed(settings) == []
    assert changed(settings, clap="other") == ["generate", "align", "fuse", "check"]
    assert changed(settings, clip=replace(record, captions=("fast jazz",))) == ["generate", "align", "fuse", "check"]
    assert changed(replace(settings, thresholds=Thresholds(audio_text=0.2))) == ["align", "fuse", "check"]
    assert changed(replace(settings, model=ModelConfig(model="n"))) == ["fuse", "check"]
    assert changed(replace(settings, num_paraphrases=3)) == ["fuse", "check"]
    assert changed(settings, prompt=1) == ["fuse", "check"]
    assert changed(settings, clip=replace(record, quality_score=3.0, quality_scorer="x")) == []


def test_bad_lines_of_a_manifest_are_told_one_by_one(tmp_path):
    path = tmp_path / "manifest.jsonl"
    good = [Record(id=name, path=f"{name}.wav", duration_in_s=1.0) for name in "ab"]
    write_manifest(path, good)
    lines = [b'{"id": "c", "path": "\xff.wav", "duration_in_s": 1}', b"[1]", b"{", b'{"id": 3}', b"", b'{"id": "d"}']
    with path.open("ab") as file:
        file.write(b"\n".join(lines) + b"\n" + path.read_bytes().splitlines()[1] + b"\n")
    rows = ManifestRows(path)
    assert [record.id for _, record in rows.read_good(range(len(rows)))] == ["a", "b"]
    reasons = [
        "not UTF-8",
        "expected a JSON object",
        "Expecting",
        "are missing",
        "are missing",
        "used before, in clip 2",
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
    asyncio.run(asyncio.wait_for(limiter.acquire(1), timeout=5))


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
    with pytest.raises(CostLimitReached, match="`--max-cost`"):
        spending.reserve(Usage(1, 0, 1))
    spending.settle(reserved, Usage(1, 0, 1))
    assert spending.cost == pytest.approx(5e-6)
    assert spending.reserve(Usage(5, 0, 1)) == pytest.approx(5e-6)


def test_a_limit_without_prices_is_refused():
    with pytest.raises(ValueError, match="give `--input-price`"):
        Spending(max_cost=1.0)
