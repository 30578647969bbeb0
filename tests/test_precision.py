import torch

from pipelines.cli import main
from qamdt.audio import read_audio
from qamdt.precision import has_bf16_instructions, preferred_dtype


def test_a_cpu_computes_in_bfloat16_only_with_instructions_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert not has_bf16_instructions()
    assert preferred_dtype("cpu") == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert preferred_dtype("cpu") == torch.bfloat16


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
