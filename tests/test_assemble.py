import json
import re

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from pipelines.assemble import main
from pipelines.pipeline_qamdt import QAMDTPipeline
from qamdt.training.config import LossConfig
from qamdt.training.loss import make_scheduler
from tests.tiny_autoencoders import build_fast_autoencoder_waveform


@pytest.mark.parametrize(
    ("prediction_type", "scheduler_class"),
    [("v_prediction", DPMSolverMultistepScheduler), ("flow_prediction", FlowMatchEulerDiscreteScheduler)],
)
def test_parts_become_a_model_folder_that_generates(build_components, tmp_path, prediction_type, scheduler_class):
    components = build_components(cross_attention_dim=384)
    components["vae"].save_pretrained(tmp_path / "vae")
    components["vocoder"].save_pretrained(tmp_path / "vocoder")
    export = tmp_path / "export"
    components["transformer"].save_pretrained(export / "transformer")
    make_scheduler(LossConfig(prediction_type=prediction_type)).save_pretrained(export / "scheduler")
    (export / "training.json").write_text(json.dumps({"scaling_factor": 0.25}))

    folders = ["--vae", tmp_path / "vae", "--vocoder", tmp_path / "vocoder", "--transformer", export]
    main([str(word) for word in [*folders, "--out", tmp_path / "model", "--dtype", "float32"]])
    assert not any(str(tmp_path) in file.read_text() for file in (tmp_path / "model").rglob("*.json"))
    pipe = QAMDTPipeline.from_pretrained(tmp_path / "model")
    assert type(pipe.scheduler) is scheduler_class
    assert pipe.vae.config.scaling_factor == 0.25
    audios = pipe("a harp", audio_length_in_s=0.2, num_inference_steps=2, output_type="pt").audios
    assert torch.isfinite(audios).all()


def test_an_autoencoder_of_waveforms_stands_alone(build_components, tmp_path):
    components = build_components(cross_attention_dim=384)
    for kind, autoencoder in (("mel", components["vae"]), ("waveform", build_fast_autoencoder_waveform())):
        autoencoder.save_pretrained(tmp_path / kind)
    components["vocoder"].save_pretrained(tmp_path / "vocoder")
    export = tmp_path / "export"
    components["transformer"].save_pretrained(export / "transformer")
    make_scheduler(LossConfig()).save_pretrained(export / "scheduler")
    (export / "training.json").write_text(json.dumps({"scaling_factor": 0.97}))
    rest = ["--transformer", str(export), "--out", str(tmp_path / "model")]

    with pytest.raises(SystemExit, match=re.escape("got it with a vocoder; leave `vocoder` out.")):
        main(["--vae", str(tmp_path / "waveform"), "--vocoder", str(tmp_path / "vocoder"), *rest])
    with pytest.raises(SystemExit, match=re.escape("got it without a vocoder; give `vocoder`.")):
        main(["--vae", str(tmp_path / "mel"), *rest])
    assert not (tmp_path / "model").exists()
    main(["--vae", str(tmp_path / "waveform"), *rest])
    pipe = QAMDTPipeline.from_pretrained(tmp_path / "model")
    assert pipe.vocoder is None
    assert pipe.vae.config.scaling_factor == 0.97
