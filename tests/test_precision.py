import pytest
import torch

from pipelines.cli import main
from qamdt import precision as precision_module
from qamdt.audio import read_audio
from qamdt.precision import has_bf16_instructions, preferred_dtype, training_precision
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
