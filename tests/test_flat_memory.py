"""A process that scores and generates for long needs no more memory than one that has just begun."""

from benchmarks.flat_memory import generate_clips, measure_growth, score_files, write_sounds
from whisq.scorer import WhisQScorer


def test_memory_does_not_grow_with_the_number_of_files_and_clips(pipe, scorer_dir, tmp_path):
    paths = write_sounds(tmp_path, 150)
    assert score_files(WhisQScorer.from_pretrained(scorer_dir), paths)["growth"] < 0.05
    assert generate_clips(pipe, 40, num_inference_steps=2)["growth"] < 0.05


def test_memory_that_is_kept_is_seen():
    kept = []
    growth = measure_growth(lambda number: kept.append(b"x" * 2**24), 30)
    assert growth["late_mib"] - growth["early_mib"] > 100  # of 432, as some may fit into what was free before
