"""Adapters of the transformer through the pipeline, as diffusers' own pipelines take them."""

import numpy as np
import pytest
import torch


peft = pytest.importorskip("peft")


def generate(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe("piano", num_inference_steps=2, generator=generator, audio_length_in_s=0.1).audios


@pytest.fixture
def adapter_dir(pipe, tmp_path):
    """A saved adapter that does something."""
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, "trained")
    layers = peft.get_peft_model_state_dict(pipe.transformer, adapter_name="trained")
    pipe.save_lora_weights(tmp_path / "lora", layers, transformer_lora_adapter_metadata=config.to_dict())
    pipe.unload_lora_weights()
    return tmp_path / "lora"


def test_an_adapter_changes_the_music_until_it_is_unloaded(pipe, adapter_dir):
    plain = generate(pipe)
    pipe.load_lora_weights(adapter_dir, adapter_name="trained")
    adapted = generate(pipe)
    assert np.abs(adapted - plain).max() > 1e-4

    pipe.set_adapters(["trained"], adapter_weights=[0.0])
    np.testing.assert_allclose(generate(pipe), plain, atol=1e-6)
    pipe.set_adapters(["trained"], adapter_weights=[1.0])
    np.testing.assert_allclose(generate(pipe), adapted, atol=1e-6)

    pipe.unload_lora_weights()
    np.testing.assert_array_equal(generate(pipe), plain)


def test_a_fused_adapter_sounds_the_same(pipe, adapter_dir):
    pipe.load_lora_weights(adapter_dir)
    adapted = generate(pipe)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    np.testing.assert_allclose(generate(pipe), adapted, atol=1e-4)
