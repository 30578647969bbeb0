"""The gallery's page names every clip and its files."""

import pytest
import soundfile

from benchmarks import gallery


def test_every_prompt_has_its_sounds_its_picture_and_what_is_played(pipe_dir, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(gallery, "PROMPTS", ("calm piano", "slow jazz"))
    gallery.make_gallery(str(pipe_dir), tmp_path / "gallery")
    page = (tmp_path / "gallery" / "README.md").read_text()
    for name in ("01-calm-piano", "02-slow-jazz"):
        assert f"![]({name}.png)" in page
        assert (tmp_path / "gallery" / f"{name}.png").stat().st_size > 1000
        for quality in ("high", "low"):
            waveform, sampling_rate = soundfile.read(tmp_path / "gallery" / f"{name}-{quality}.opus")
            assert len(waveform) / sampling_rate == pytest.approx(0.32, abs=0.03)
            assert f"({name}-{quality}.opus)" in page
