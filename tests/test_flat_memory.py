"""A process that scores and generates for long needs no more memory than one that has just begun."""

import soundfile

from benchmarks.flat_memory import generate_clips, measure_growth, score_files, write_sounds
from benchmarks.long_file import score_long_file, write_long_file
from whisq.scorer import WhisQScorer


def test_memory_does_not_grow_with_the_number_of_files_and_clips(pipe, scorer_dir, tmp_path):
    paths = write_sounds(tmp_path, 150)
    assert score_files(WhisQScorer.from_pretrained(scorer_dir), paths)["growth"] < 0.05
    assert generate_clips(pipe, 40, num_inference_steps=2)["growth"] < 0.05


def test_memory_that_is_kept_is_seen():
    kept = []
    growth = measure_growth(lambda number: kept.append(b"x" * 2**24), 30)
    assert growth["late_mib"] - growth["early_mib"] > 100  # of 432, as some may fit into what was free before


def test_a_long_file_is_scored_by_the_command_in_a_process_that_is_watched(scorer_dir, tmp_path):
    write_long_file(tmp_path / "long.flac", hours=0.03)
    assert soundfile.info(tmp_path / "long.flac").duration == 108.0
    result = score_long_file(tmp_path / "long.flac", tmp_path / "scores.jsonl", str(scorer_dir))
    assert (result["row"]["status"], result["row"]["duration_in_s"]) == ("ok", 108.0)
    assert 50 < result["early_mib"] <= result["peak_mib"] < 1024
    assert result["cpu_in_s"] > 0
