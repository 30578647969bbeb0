import pytest
import yaml

from qamdt.training.config import CONFIG_DIR, load_config


MINIMAL = {"data": {"latents": "latents"}, "model": {"num_layers": 4}, "run": {"output_dir": "runs", "max_steps": 2}}


def write_config(folder, values=MINIMAL, text=""):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values) + text)
    return path


@pytest.mark.parametrize("preset", sorted(path.stem for path in CONFIG_DIR.glob("*.yaml")))
def test_every_preset_loads_by_its_name_and_by_its_path(preset):
    assert load_config(preset) == load_config(f"configs/qamdt/{preset}.yaml")


def test_overrides_replace_settings(tmp_path):
    config = load_config(
        write_config(tmp_path), ["optim.learning_rate=2.0e-4", "run.max_minutes=5", "model.mlp_ratio=3.0"]
    )
    assert config.optim.learning_rate == 2e-4
    assert config.run.max_minutes == 5.0
    assert config.model == {"num_layers": 4, "mlp_ratio": 3.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=1.0", r"unknown key `optim.learning_rat`; expected one of \[.*'learning_rate'"),
        ("optim.learning_rate=1e-4", "`optim.learning_rate` must be of type float, got '1e-4' .*write 1.0e-4"),
        ("run.batch_size=2.5", "`run.batch_size` must be of type int, got 2.5"),
        ("run.compile=1", "`run.compile` must be of type bool, got 1"),
        (
            "loss.prediction_type=flow",
            r"`loss.prediction_type` must be one of \['epsilon', 'v_prediction', 'flow_prediction'\], got 'flow'",
        ),
        ("loss=3", "`loss` must be a mapping, got 3"),
        ("run.max_steps=null", "both are null"),
        ("loss.min_mask_ratio=0.7", "must satisfy 0 <= min <= max < 1, got 0.7 and 0.5"),
        ("data.crop_in_frames=[64, 1.5]", r"`data.crop_in_frames\[1\]` must be of type int, got 1.5"),
        ("data.level_weights=[1.0, 2.0]", "`data.level_weights` must be five numbers"),
        ("lora.rank=4", "`lora` needs `run.init_from`"),
        ("preview.prompts=[piano]", "`preview.prompts` needs `run.pipeline`"),
        ("preview.quality=superb", r"`preview.quality` must be one of \['low', 'medium', 'high'\], got 'superb'"),
        ("run.log_with=papers", r"`run.log_with` must be one of \['tensorboard', 'wandb'\]"),
        ("batch_size", "an override must read `key=value`"),
        ("run.max_steps.more=1", "is no group of settings"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(write_config(tmp_path), [override])


def test_a_missing_key_and_broken_yaml_are_named(tmp_path):
    with pytest.raises(ValueError, match="config.yaml: the key `run.output_dir` is missing"):
        load_config(write_config(tmp_path, {**MINIMAL, "run": {}}))
    with pytest.raises(ValueError, match="is no valid YAML"):
        load_config(write_config(tmp_path, text="a: [1"))


def test_an_unknown_config_lists_the_presets():
    with pytest.raises(FileNotFoundError, match=r"no config 'huge'.*'mini'.*'tiny'"):
        load_config("huge")


def test_a_bare_no_means_the_word(tmp_path):
    assert load_config(write_config(tmp_path), ["run.mixed_precision=no"]).run.mixed_precision == "no"
