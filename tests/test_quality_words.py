"""A word for quality is one line of one table: everything that knows words takes them from there."""

import numpy as np
import pytest

from data_prep.latent_index import list_training_texts
from pipelines.cli import build_parser, parse_quality
from pipelines.quality_conditioning import resolve_quality
from qamdt.manifest import Record
from qamdt.quality import PUBLISHED_QUALITY_STATS, QualityStats
from qamdt.quality_words import QUALITY_WORDS, QualityWord, asks_for_best, quality_prefix
from whisq.cli import build_parser as build_whisq_parser


SCORES = np.random.default_rng(0).normal(3, 0.5, size=2000)


@pytest.fixture
def excellent(monkeypatch):
    """A fourth word, better than the others."""
    word = QualityWord(level=5, begins_at_sigma=1.75, begins_at_share=0.9)
    monkeypatch.setitem(QUALITY_WORDS, "excellent", word)
    return word


def test_a_fourth_word_divides_the_scores(excellent):
    for method in ("sigma", "quantile"):
        stats = QualityStats.from_scores(SCORES, "test", method=method)
        assert stats.words == ("low", "medium", "high", "excellent")
        prefixes = [stats.prefix(score) for score in SCORES]
        shares = [prefixes.count(quality_prefix(word)) / len(prefixes) for word in stats.words]
        expected = (0.106, 0.789, 0.066, 0.04) if method == "sigma" else (1 / 3, 1 / 3, 0.9 - 2 / 3, 0.1)
        assert shares == pytest.approx(expected, abs=0.02)
        assert QualityStats.from_dict(stats.to_dict()) == stats


def test_a_fourth_word_can_be_asked_for(excellent, capsys):
    stats = QualityStats.from_scores(SCORES, "test")
    told = resolve_quality("excellent", stats, np.arange(4) + 0.5, 4.0)
    assert (told.prefix, told.level, told.frame_levels.tolist()) == ("excellent quality, ", 5, [5.0] * 4)
    assert parse_quality("excellent") == "excellent"
    assert asks_for_best("excellent")
    assert not asks_for_best("high")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["generate", "--help"])
    assert "excellent, high, medium, low, unknown" in capsys.readouterr().out


def test_a_fourth_word_is_trained(excellent):
    record = Record(
        id="a",
        path="a.wav",
        duration_in_s=4.0,
        captions=("song",),
        quality_score=3.0,
        quality_frames=(1.0, 5.0),
        quality_frame_rate=0.5,
    )
    texts = list_training_texts(record, QualityStats.from_scores(SCORES, "test"), None)
    assert set(texts) == {"", "song", *(f"{word} quality, song" for word in QUALITY_WORDS)}
    edges = ["--edges", "1", "2", "3", "4", "--prefix-edges", "2", "3", "4"]
    arguments = build_whisq_parser().parse_args(["finalize", "a.jsonl", "--stats", "s", "-o", "o", *edges])
    assert arguments.prefix_edges == [2, 3, 4]


def test_a_model_from_before_knows_the_words_from_before(excellent):
    older = {name: value for name, value in PUBLISHED_QUALITY_STATS.to_dict().items() if name != "words"}
    stats = QualityStats.from_dict(older)
    assert stats.prefix(5.0) == "high quality, "
    assert resolve_quality("high", stats, np.arange(4) + 0.5, 4.0).level == 5
    with pytest.raises(ValueError, match='`quality` must be "high", "medium", "low", a score .* got \'excellent\''):
        resolve_quality("excellent", stats, np.arange(4) + 0.5, 4.0)
