"""The table of peers reckons a clip from its parts, and says which one was measured whole."""

import pytest

from benchmarks import peers
from pipelines.samplers import NUM_STEPS


def rounds(**parts):
    """One round, in which every part took as many CPU-seconds as said and twice as many seconds."""
    return [{"parts": {name: {"cpu_s": s, "wall_s": 2 * s} for name, s in parts.items()}, "peak_gib": 1.5}]


def test_a_clip_is_reckoned_from_steps_and_decoding_unless_it_was_measured_whole():
    measured = {
        "qamdt-mini": rounds(clip=4.0, text=0.1, step=0.2, unguided_step=0.1, decoding=0.5),
        "MusicLDM": rounds(step=3.0, decoding=20.0),
    }
    rows = {(row["candidate"], row["steps"]): row for row in peers.summarize(measured, seconds=10.0)}
    assert rows["qamdt-mini", NUM_STEPS]["cpu_s"] == 4.0
    assert rows["qamdt-mini", 20]["cpu_s"] == pytest.approx(20 * 0.2 + 0.5 + 0.1)
    assert rows["MusicLDM", 200]["cpu_s"] == pytest.approx(200 * 3 + 20)
    assert rows["MusicLDM", 20]["times_real_time"] == pytest.approx(10 / (2 * (20 * 3 + 20)))
    table = peers.format_table(list(rows.values())).splitlines()
    assert ["*" in line for line in table[2:]] == [True, False, False, False]


def test_the_median_of_the_rounds_counts():
    measured = {
        "MusicLDM": [*rounds(step=1.0, decoding=0.0), *rounds(step=9.0, decoding=0.0), *rounds(step=2.0, decoding=0.0)]
    }
    assert peers.summarize(measured, seconds=1.0)[0]["cpu_s"] == 200 * 2.0


def test_the_table_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    rows = peers.summarize({"MusicLDM": rounds(step=3.0, decoding=20.0)}, seconds=10.0)
    peers.plot(rows, 10.0, str(tmp_path / "peers.png"))
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
