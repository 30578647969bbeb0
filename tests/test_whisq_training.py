import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator

from benchmarks.whisq_phase1 import write_encoder, write_phase1
from qamdt.settings import build, override
from tests.tiny_training import StopAfter
from whisq.ablation import VARIANTS, list_sweep, run_variants
from whisq.ablation import main as ablation_main
from whisq.evaluate import evaluate, evaluate_unheard_systems, load_models
from whisq.evaluate import main as evaluate_main
from whisq.evaluation.controls import exchange_prompts, look_up_systems, one_person_against_others
from whisq.evaluation.plots import calibration_curve
from whisq.modeling_whisq import WhisQModel
from whisq.ratings import Predictions, RatedClip
from whisq.train import main, train
from whisq.training.config import DataConfig, WhisQConfig
from whisq.training.dataset import CachedClips, order_of_epoch
from whisq.training.features import FeatureStore, clip_key
from whisq.training.predictions import dev_score, predict
from whisq.training.preparation import PreparedMusic


NUM_SYSTEMS, CLIPS_PER_SYSTEM, NUM_PROMPTS = 12, 20, 4


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Builds music whose truth is known, from hidden states alone.

    Tokens 0 to 2 tell quality, 3 to 14 the system, 15 to 18 what is played. Quality is told by its token ("quality") or
    by the system alone ("shortcut"); the alignment is whether what the prompt asks for is played.
    """
    return {kind: plant(tmp_path_factory.mktemp(kind), kind) for kind in ("quality", "shortcut")}


def plant(folder, kind):
    generator = np.random.default_rng(0)
    (folder / "sound.wav").write_bytes(b"")
    audio = FeatureStore(folder / "audio", {"hidden_size": 20})
    text = FeatureStore(folder / "text", {"hidden_size": 8})
    prompts = [f"prompt {i}" for i in range(NUM_PROMPTS)]
    text.add(prompts, [torch.cat([3 * torch.eye(8)[i : i + 1], torch.ones(2, 8)]) for i in range(NUM_PROMPTS)])
    system_qualities = generator.permutation(np.linspace(1.2, 4.8, NUM_SYSTEMS))
    splits, keys, states = {"train": [], "dev": [], "test": []}, [], []
    for number in range(NUM_SYSTEMS * CLIPS_PER_SYSTEM):
        system, rank = divmod(number, CLIPS_PER_SYSTEM)
        quality = system_qualities[system] if kind == "shortcut" else generator.uniform(1, 5)
        played, asked = generator.integers(NUM_PROMPTS, size=2)
        asked = played if generator.random() < 0.4 else asked
        tokens = 0.3 * generator.normal(size=(int(generator.integers(4, 9)), 20))
        tokens[:, 0] += quality - 3 if kind == "quality" else 0
        tokens[:, 3 + system] += 2
        tokens[:, 15 + played] += 3
        clip = RatedClip(
            id=f"{number}",
            path=folder / "sound.wav",
            system=f"S{system:03d}",
            overall_quality=float(np.clip(quality + 0.2 * generator.normal(), 1, 5)),
            prompt=prompts[asked],
            text_alignment=4.6 if asked == played else 1.4,
        )
        splits[("dev", "test", "train", "train", "train")[rank % 5]].append(clip)
        keys.append(clip_key(clip, 30.0))
        states.append(torch.from_numpy(tokens))
    audio.add(keys, states)
    return PreparedMusic(
        splits=splits,
        cached=CachedClips(audio, text, frames_per_s=1.0, config=DataConfig(musiceval="nowhere")),
        plan=None,
        faults=[],
        system_ratings={},
        person_ratings={},
        model_arguments={"audio_hidden_size": 20, "text_hidden_size": 8},
    )


def make_config(output_dir, **run):
    return build(
        WhisQConfig,
        {
            "data": {"musiceval": "nowhere", "num_folds": 3},
            "model": {"dropout": 0.1, "head_hidden_sizes": [32]},
            "loss": {"alignment": "none"},
            "optim": {"learning_rate": 0.005},
            "run": {
                "output_dir": str(output_dir),
                "seeds": [0],
                "max_epochs": 40,
                "batch_size": 36,
                "num_resamples": 30,
                **run,
            },
        },
    )


def srcc(rows, name, target):
    return rows[name]["utterance"][target]["srcc"]["mean"]


def test_planted_quality_and_alignment_are_found_and_exchanged_prompts_destroy_the_latter(
    planted, accelerator, tmp_path
):
    music, config = planted["quality"], make_config(tmp_path)
    train(config, music, accelerator, StopAfter())
    rows, predictions = evaluate(config, music, load_models(config), "test")
    assert srcc(rows, "WhisQ, seeds averaged", "overall_quality") > 0.9
    assert srcc(rows, "WhisQ, seeds averaged", "text_alignment") > 0.75
    assert srcc(rows, "control: prompts exchanged", "text_alignment") < 0.2
    assert srcc(rows, "control: mean of the system", "overall_quality") < 0.5
    assert len(predictions.overall_quality) == len(music.splits["test"])


def test_a_planted_shortcut_is_exposed_by_leaving_systems_out(planted, accelerator, tmp_path):
    music, config = planted["shortcut"], make_config(tmp_path, max_epochs=12)
    train(config, music, accelerator, StopAfter())
    rows, _ = evaluate(config, music, load_models(config), "test")
    assert srcc(rows, "WhisQ, seeds averaged", "overall_quality") > 0.9
    assert srcc(rows, "control: mean of the system", "overall_quality") > 0.9
    rows = evaluate_unheard_systems(config, music, accelerator, StopAfter())
    assert srcc(rows, "WhisQ, systems left out, seeds averaged", "overall_quality") < 0.4
    assert (tmp_path / "systems-left-out" / "fold-2" / "results.json").is_file()


def test_a_resumed_run_equals_a_straight_one_exactly(planted, accelerator, tmp_path):
    music = planted["quality"]
    straight, resumed = (make_config(tmp_path / name, max_epochs=3, seeds=[0, 1]) for name in ("straight", "resumed"))
    expected = train(straight, music, accelerator, StopAfter())
    for num_steps in (2, 4, 7):  # in the middle of a pass, at its end, in the second seed
        assert train(resumed, music, accelerator, StopAfter(num_steps)) is None
        torch.manual_seed(12345)
    assert train(resumed, music, accelerator, StopAfter()) == expected
    for name in ("seed-0/log.jsonl", "seed-1/log.jsonl", "results.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert expected["test"]["utterance"]["overall_quality"]["srcc"]["sd"] > 0
    assert len(expected["test"]["utterance"]["overall_quality"]["srcc"]["values"]) == 2


def test_training_stops_when_the_dev_set_no_longer_improves_and_keeps_the_best_weights(planted, accelerator, tmp_path):
    music = planted["quality"]
    config = override(make_config(tmp_path, max_epochs=30, patience=2), {"optim.learning_rate": 0.05})
    train(config, music, accelerator, StopAfter())
    lines = [json.loads(line) for line in (tmp_path / "seed-0" / "log.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["dev_score"])
    assert json.loads((tmp_path / "seed-0" / "done.json").read_text())["best_epoch"] == best["epoch"]
    assert best["epoch"] <= len(lines) - 2 < 28
    (model,) = load_models(config)
    clips = music.splits["dev"]
    predictions = predict(model, music.cached, clips, batch_size=7, device=torch.device("cpu"))
    assert dev_score(clips, predictions)["score"] == pytest.approx(best["dev_score"])


def test_every_pass_trains_on_every_clip(planted, accelerator, tmp_path, monkeypatch):
    music, config = planted["quality"], make_config(tmp_path, max_epochs=3, batch_size=9)
    collate, heard = type(music.cached).collate, {}

    def listen(cached, clips, *, seed=None, **options):
        heard.setdefault(seed, []).extend(clip.id for clip in clips)
        return collate(cached, clips, seed=seed, **options)

    monkeypatch.setattr(type(music.cached), "collate", listen)
    train(config, music, accelerator, StopAfter())
    for epoch in range(3):
        ids = {clip.id for clip in music.training_clips(0, epoch)}
        found = heard[f"window 0 {epoch}"]
        assert set(found) == ids
        assert len(found) - len(ids) < 9


def test_a_run_with_other_settings_is_not_resumed(planted, accelerator, tmp_path):
    config = make_config(tmp_path, max_epochs=1)
    train(config, planted["quality"], accelerator, StopAfter())
    train(override(config, {"run.seeds": [0, 1]}), planted["quality"], accelerator, StopAfter())
    with pytest.raises(ValueError, match="other settings: `loss.huber_delta` was 1.0 and is now 0.5; give another"):
        train(override(config, {"loss.huber_delta": 0.5}), planted["quality"], accelerator, StopAfter())


def test_a_run_on_ratings_that_have_changed_is_not_resumed(planted, accelerator, tmp_path, capsys):
    config, music = make_config(tmp_path, max_epochs=1), planted["quality"]
    train(config, music, accelerator, StopAfter())
    first, *others = music.splits["train"]
    changed = {**music.splits, "train": [dataclasses.replace(first, overall_quality=1.0), *others]}
    with pytest.raises(ValueError, match="clips, ratings, prompts or encoders that have changed"):
        train(config, dataclasses.replace(music, splits=changed), accelerator, StopAfter())
    train(config, music, accelerator, StopAfter())
    assert "does not say" not in capsys.readouterr().err
    (tmp_path / "music.json").unlink()  # as runs of earlier versions
    train(config, music, accelerator, StopAfter())
    assert "does not say what it has learnt from" in capsys.readouterr().err


def test_every_variant_of_the_ablation_trains(planted, accelerator, tmp_path):
    music = planted["quality"]
    short = {split: clips[:12] for split, clips in music.splits.items()}
    config = override(make_config(tmp_path, max_epochs=1, batch_size=6), {"loss.alignment_weight": 4e-5})
    sweep = list_sweep(config, None, [0.05])
    assert [cell["loss.alignment_weight"] for cell in sweep.values()] == [1e-6, 1e-5, 4e-5, 1e-4]
    variants = VARIANTS | dict([sweep.popitem()])
    del variants["fine-tuned encoders"]  # which asks for sound; `test_whisq_finetune` trains it
    rows = run_variants(config, variants, dataclasses.replace(music, splits=short), accelerator, StopAfter(), "test")
    assert list(rows) == list(variants)
    assert list(rows)[-1] == "weight 0.0001, blur 0.05"


def test_windows_are_drawn_inside_the_clip_and_repeat_with_their_seed(planted):
    music = planted["quality"]
    clips = music.splits["train"][:30]
    whole, drawn = music.cached.collate(clips), music.cached.collate(clips, seed="a")
    assert torch.equal(whole.window_mask, whole.audio_mask)
    assert not (drawn.window_mask & ~drawn.audio_mask).any()
    assert drawn.window_mask.any(dim=1).all()
    assert 0 < (drawn.window_mask.sum(dim=1) < drawn.audio_mask.sum(dim=1)).sum() < 30
    assert torch.equal(drawn.window_mask, music.cached.collate(clips, seed="a").window_mask)
    assert not torch.equal(drawn.window_mask, music.cached.collate(clips, seed="b").window_mask)


def test_clips_without_a_prompt_train_quality_alone(planted, accelerator, tmp_path):
    music = planted["quality"]
    silent = {
        split: [dataclasses.replace(clip, prompt=None, text_alignment=None) for clip in clips]
        for split, clips in music.splits.items()
    }
    config = make_config(tmp_path, max_epochs=1)
    results = train(config, dataclasses.replace(music, splits=silent), accelerator, StopAfter())
    assert list(results["test"]["utterance"]) == ["overall_quality"]


def test_a_pass_meets_every_clip_and_differs_from_the_next():
    first = order_of_epoch(10, seed=0, epoch=0, multiple=4)
    assert len(first) == 12
    assert set(first) == set(range(10))
    assert first == order_of_epoch(10, seed=0, epoch=0, multiple=4) != order_of_epoch(10, seed=0, epoch=1, multiple=4)
    assert len(order_of_epoch(3, seed=0, epoch=0, multiple=8)) == 8


def test_exchanged_prompts_are_others_and_keep_their_counts(planted):
    clips = planted["quality"].splits["test"]
    exchanged = exchange_prompts(clips)
    assert all(new.prompt != old.prompt for new, old in zip(exchanged, clips, strict=True))
    assert sorted(clip.prompt for clip in exchanged) == sorted(clip.prompt for clip in clips)
    assert all(new.text_alignment == old.text_alignment for new, old in zip(exchanged, clips, strict=True))


def test_system_means_are_looked_up_without_the_test_ratings():
    def clip(system, quality, alignment=None):
        return RatedClip(
            id="a", path=None, system=system, overall_quality=quality, text_alignment=alignment, prompt="p"
        )

    looked_up = look_up_systems(
        [clip("a", 1.0, 2.0), clip("a", 2.0), clip("b", 5.0, 4.0)], [clip("a", 9), clip("c", 9)]
    )
    assert looked_up.overall_quality.tolist() == pytest.approx([1.5, 8 / 3])
    assert looked_up.text_alignment.tolist() == [2.0, 3.0]


def test_one_person_is_compared_with_the_mean_of_the_others():
    clips = [RatedClip(id=name, path=None, system="S", overall_quality=3.0, text_alignment=3.0) for name in "abc"]
    persons = {"a": {"x": (1.0, 5.0), "y": (3.0, 3.0), "z": (5.0, 1.0)}, "b": {"x": (2.0, 2.0)}}
    (clip,), predictions = one_person_against_others(clips, persons)
    assert clip.overall_quality * 2 + predictions.overall_quality[0] == pytest.approx(9.0)
    assert predictions.text_alignment[0] in (1.0, 3.0, 5.0)


def test_the_calibration_curve_of_perfect_predictions_is_the_diagonal():
    ratings = np.linspace(1, 5, 41)
    centers, means, errors = calibration_curve(ratings, ratings)
    assert centers.tolist() == pytest.approx(means.tolist())
    assert len(centers) == 8
    assert (errors > 0).all()


def test_a_release_is_trained_on_evaluated_and_ablated_by_three_commands(tmp_path, capsys):
    data = write_phase1(tmp_path / "phase1", kind="quality", num_systems=3, clips_per_system=5, seconds=0.3)
    (data / "wav" / "audiomos2025-track1-S101_P001.wav").write_bytes(b"this is no sound")
    settings = [f"data.musiceval={data}", f"encoders.audio={write_encoder(tmp_path / 'encoder')}"]
    settings += ["encoders.text=embedded", f"run.output_dir={tmp_path / 'run'}", "run.seeds=[0,1]"]
    settings += ["run.max_epochs=1", "run.batch_size=8", "run.num_resamples=20"]
    assert main(["--config", "default", *settings]) == 1  # for the file that is no sound
    output = capsys.readouterr()
    assert "mean ± sd of 2 seeds" in output.out
    assert "1 faults in the data, listed in" in output.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test"]["utterance"]["text_alignment"]["mse"]["sd"] >= 0
    (fault,) = (tmp_path / "run" / "faults.jsonl").read_text().splitlines()
    assert "S101_P001.wav" in fault
    model = WhisQModel.from_pretrained(tmp_path / "run" / "seed-1" / "model")
    assert model.config.audio_encoder == str(tmp_path / "encoder")

    assert evaluate_main([str(tmp_path / "run"), "--split", "test", "run.num_resamples=10"]) == 1
    assert "| one person against the others |" in capsys.readouterr().out
    report = tmp_path / "run" / "evaluation-test"
    assert (report / "scatter.png").read_bytes()[:4] == (report / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    answers = (report / "answer.txt").read_text().splitlines()
    assert len(answers) == len((report / "predictions.csv").read_text().splitlines()) - 1
    assert all(line.split(",")[0].startswith("audiomos2025-track1-S10") for line in answers)

    # The same scorer on another release, without training: another table beside the first.
    other = write_phase1(tmp_path / "other", kind="quality", num_systems=3, clips_per_system=3, seconds=0.2)
    weights = (tmp_path / "run" / "seed-1" / "model").stat().st_mtime_ns
    command = [str(tmp_path / "run"), "--out", str(tmp_path / "generalisation"), f"data.musiceval={other}"]
    assert evaluate_main([*command, "run.num_resamples=10"]) == 0
    assert "| control: prompts exchanged |" in (tmp_path / "generalisation" / "report.md").read_text()
    assert (report / "answer.txt").read_text().splitlines() == answers
    assert (tmp_path / "run" / "seed-1" / "model").stat().st_mtime_ns == weights

    settings += [f"data.features={tmp_path / 'run' / 'features'}", f"run.output_dir={tmp_path / 'ablation'}"]
    grid = ["--only", "sweep", "--weights", "0.1", "--blurs", "0.05", "0.1"]
    assert ablation_main(["--config", "default", *settings, *grid]) == 1
    table = (tmp_path / "ablation" / "ablation.md").read_text()
    assert table.count("| weight 0.1, blur 0.05 |") == table.count("| weight 0.1, blur 0.1 |") == 2


def test_a_manifest_is_trained_on_with_planned_prompts(tmp_path):
    generator = np.random.default_rng(0)
    lines = []
    for i in range(12):
        instrument, quality = ("piano", "drums")[i % 2], float(1 + i % 5)
        soundfile.write(tmp_path / f"{i}.wav", 0.05 * quality * generator.normal(size=8000), 16_000)
        tags = {"instruments": [instrument], "split": "dev" if i < 3 else "test" if i < 6 else "train"}
        record = {"id": f"{i}", "path": f"{i}.wav", "duration_in_s": 0.5, "captions": [f"{instrument} number {i}"]}
        quality_fields = {"quality_score": quality, "quality_frames": [quality] * 5, "quality_frame_rate": 10.0}
        lines.append(json.dumps({**record, **quality_fields, "tags": tags}) + "\n")
    (tmp_path / "manifest.jsonl").write_text("".join(lines))
    settings = [
        f"data.manifest={tmp_path / 'manifest.jsonl'}",
        f"encoders.audio={write_encoder(tmp_path / 'encoder')}",
    ]
    settings += ["data.min_window_in_s=0.1", "run.max_epochs=2", "run.batch_size=4"]
    assert main(["--config", "mini", *settings, f"run.output_dir={tmp_path / 'run'}"]) == 0
    last = json.loads((tmp_path / "run" / "seed-0" / "log.jsonl").read_text().splitlines()[-1])
    assert last["text_alignment"] > 0
    assert last["window_quality"] > 0
    assert "text_alignment" in json.loads((tmp_path / "run" / "results.json").read_text())["test"]["utterance"]


def test_wrong_settings_are_told_in_one_line(capsys):
    assert main(["--config", "default", "data.musiceval=/nowhere", "run.batchsize=7"]) == 2
    assert "unknown key `run.batchsize`" in capsys.readouterr().err
    assert main(["--config", "mini", "--dry-run", "run.batch_size=7"]) == 0
    assert "batch_size: 7" in capsys.readouterr().out


def test_predictions_of_a_batch_are_those_of_single_clips(planted):
    music = planted["quality"]
    clips = music.splits["dev"][:9]
    model = WhisQModel(**music.model_arguments)
    device = torch.device("cpu")
    together, alone = (predict(model, music.cached, clips, batch_size=size, device=device) for size in (9, 1))
    np.testing.assert_allclose(together.overall_quality, alone.overall_quality, atol=1e-5)
    np.testing.assert_allclose(together.text_alignment, alone.text_alignment, atol=1e-5)
    assert isinstance(together, Predictions)
