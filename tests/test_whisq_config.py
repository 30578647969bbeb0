import pytest
import yaml

from qamdt.settings import format_settings, override
from whisq.training.config import CONFIG_DIR, load_config


MINIMAL = {"data": {"musiceval": "MusicEval-phase1"}, "run": {"output_dir": "runs"}}


def write_config(folder, values=MINIMAL):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("preset", sorted(path.stem for path in CONFIG_DIR.glob("*.yaml")))
def test_every_preset_loads_by_its_name_and_by_its_path(preset):
    assert load_config(preset) == load_config(f"configs/whisq/{preset}.yaml")


def test_written_settings_read_back_the_same(tmp_path):
    config = override(
        load_config("paper"), {"loss.alignment_weight": 1e-6, "run.seeds": [3, 4], "model.head_hidden_sizes": [32]}
    )
    (tmp_path / "config.yaml").write_text(format_settings(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_the_paper_preset_is_the_papers_loss():
    config = load_config("paper")
    assert (config.loss.alignment_weight, config.loss.blur, config.loss.normalize) == (4e-5, 0.05, False)
    assert config.run.seeds == (0, 1, 2, 3, 4)
    assert config.data.window_loss == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.learning_rat=1.0", r"unknown key `optim.learning_rat`; expected one of \[.*'learning_rate'"),
        ("optim.learning_rate=1e-4", "`optim.learning_rate` must be of type float, got '1e-4' .*write 1.0e-4"),
        ("loss.alignment=transport", r"`loss.alignment` must be one of \['sinkhorn'"),
        ("data.manifest=m.jsonl", "one of `data.musiceval` and `data.manifest` must be given"),
        ("data.musiceval=null", "one of `data.musiceval` and `data.manifest` must be given"),
        ("data.matched_share=1.5", "`data.matched_share` must lie between 0 and 1, got 1.5"),
        ("data.min_window_in_s=40.0", "at most `data.max_seconds`, got 40.0 and 30.0"),
        ("run.seeds=[0, 0]", "must be a list of different whole numbers"),
        ("run.patience=0", "`run.patience` must be at least 1, got 0"),
        ("run.seeds.more=1", "`seeds` is no group of settings"),
        ("batch_size", "an override must read `key=value`"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, change, message):
    values = {**MINIMAL, "run": {**MINIMAL["run"], "seeds": [0]}}
    with pytest.raises(ValueError, match=message):
        load_config(write_config(tmp_path, values), [change])


def test_an_unknown_config_lists_the_presets():
    with pytest.raises(FileNotFoundError, match=r"no config 'huge'.*'default'.*'mini'.*'paper'"):
        load_config("huge")
