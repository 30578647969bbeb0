import pytest
import torch

from pipelines.cli import main
from qamdt import precision as precision_module
from qamdt.audio import read_audio, write_audio
from qamdt.precision import check_device, has_bf16_instructions, preferred_dtype, training_precision
from qamdt.training import optimizers
from qamdt.training.config import OptimConfig
from qamdt.training.muon import Float32Muon


def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert not has_bf16_instructions()
    assert preferred_dtype("cpu") == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert preferred_dtype("cpu") == torch.bfloat16


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator decides for itself")
@pytest.mark.parametrize(("has_instructions", "precision"), [(True, "bf16"), (False, "no")])
def test_training_takes_the_faster_precision_inside_muon_too(monkeypatch, has_instructions, precision):
    for module in (precision_module, optimizers):
        monkeypatch.setattr(module, "has_bf16_instructions", lambda: has_instructions)
    assert training_precision("auto")[0] == precision
    assert training_precision("bf16")[0] == "bf16"
    network = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)])})
    muon, _ = optimizers.build_optimizers(network, OptimConfig(optimizer="muon"))
    assert isinstance(muon, Float32Muon) != has_instructions


def test_precision_changes_the_sound_less_than_the_seed(tmp_path):
    clips = {}
    for name, *options in (
        ("exact", "--dtype", "float32"),
        ("rounded", "--dtype", "bfloat16"),
        ("other", "--seed", "9"),
    ):
        command = ["generate", "solo harp", "--seconds", "2", "--steps", "8", "-o", str(tmp_path / f"{name}.wav")]
        assert main([*command, *options]) in (0, None)
        clips[name] = read_audio(tmp_path / f"{name}.wav")
    assert '"dtype": "bfloat16"' in (tmp_path / "rounded.json").read_text()
    rounding = (clips["rounded"] - clips["exact"]).norm()
    assert 0 < rounding < 0.3 * (clips["other"] - clips["exact"]).norm()


def test_a_device_that_this_machine_has_not_is_an_error_of_one_line(tmp_path, capsys):
    from data_prep import encode_latents, refine_captions
    from whisq import cli as whisq_cli

    assert check_device("cpu") == torch.device("cpu")
    assert check_device("cpu:0") == torch.device("cpu", 0)  # what accelerate calls it
    write_audio(tmp_path / "a.wav", torch.zeros(16_000), 16_000)
    (tmp_path / "m.jsonl").write_text('{"id": "a", "path": "a.wav", "duration_in_s": 1.0}\n', encoding="utf-8")
    manifest = ["--manifest", str(tmp_path / "m.jsonl")]
    for device in ("cuda:99", "gpu", "meta"):
        for command, arguments in (
            (main, ["generate", "piano", "-o", str(tmp_path / "b.wav")]),
            (whisq_cli.main, ["score", str(tmp_path / "a.wav"), "-o", str(tmp_path / "s.jsonl")]),
            (encode_latents.main, [*manifest, "--vae", str(tmp_path), "--out", str(tmp_path / "latents")]),
            (refine_captions.main, manifest),
        ):
            assert command([*arguments, "--device", device]) in (1, 2)
            message = capsys.readouterr().err.strip().splitlines()
            assert len(message) == 1, message
            assert "`device` must be among cpu" in message[0]
            assert f"got {device!r}" in message[0]
