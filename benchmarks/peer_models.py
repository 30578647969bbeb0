"""The models that `benchmarks/peers.py` times, each as parts that run once: a denoiser step, a decoding and the like.

The embedded model is the real one; all others have random weights in the shapes of their publications, as their classes
in diffusers have them by default or as their checkpoints are configured. A step of a guided model runs on a batch of two.
"""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from qamdt.training.config import load_config


Parts = dict[str, Callable[[], object]]

PROMPT = "calm solo piano ballad"
TEXT_TOKENS = 16
MEL_FRAMES_PER_SECOND = 100
UNET_CHANNELS = (128, 256, 384, 640)
UNET_ARGUMENTS = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": UNET_CHANNELS,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    "attention_head_dim": tuple(channels // 32 for channels in UNET_CHANNELS),
}


def build_embedded(seconds: float, device: str) -> Parts:
    """The model of this project, whole and in parts."""
    pipe = _embedded(device)
    frames = pipe.num_latent_frames(seconds)
    latents = torch.randn(1, pipe.transformer.config.in_channels, frames, pipe.transformer.config.sample_size[1])
    latents = latents.to(device)
    return {
        "clip": lambda: pipe(PROMPT, audio_length_in_s=seconds),
        "text": lambda: [pipe.encode_prompt(text) for text in (PROMPT, "")],
        **_steps(pipe.transformer, frames, device),
        "decoding": lambda: pipe.decode(latents),
    }


def build_small(seconds: float, device: str) -> Parts:
    """The preset `small`: a larger network before the embedded decoders."""
    pipe = _embedded(device)
    frames = pipe.num_latent_frames(seconds)
    latents = torch.randn(1, pipe.transformer.config.in_channels, frames, pipe.transformer.config.sample_size[1])
    latents = latents.to(device)
    return {**_steps(_network("small", device), frames, device), "decoding": lambda: pipe.decode(latents)}


def build_base(seconds: float, device: str) -> Parts:
    """The preset `base`: the published network before AudioLDM's decoders."""
    frames = 4 * round(seconds * MEL_FRAMES_PER_SECOND / 16)  # whole patches
    return {
        **_steps(_network("base", device), frames, device),
        "decoding": _audioldm_decoding(seconds, device),
    }


def build_musicldm(seconds: float, device: str) -> Parts:
    """MusicLDM's denoiser, conditioned on one CLAP vector, and its decoders."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        **UNET_ARGUMENTS,
        cross_attention_dim=UNET_CHANNELS,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    )
    unet = unet.to(device).eval()
    latents = _audioldm_latents(seconds, device)
    clap_embedding = torch.randn(2, 512, device=device)
    return {
        "step": lambda: unet(latents, 500, encoder_hidden_states=None, class_labels=clap_embedding),
        "decoding": _audioldm_decoding(seconds, device),
    }


def build_audioldm2(seconds: float, device: str) -> Parts:
    """AudioLDM2's denoiser, conditioned on GPT-2 and Flan-T5 states, and its decoders."""
    from diffusers import AudioLDM2UNet2DConditionModel

    unet = AudioLDM2UNet2DConditionModel(**UNET_ARGUMENTS, cross_attention_dim=((None, 768, 1024),) * 4)
    unet = unet.to(device).eval()
    latents = _audioldm_latents(seconds, device)
    generated_states = torch.randn(2, 8, 768, device=device)
    text_states = torch.randn(2, TEXT_TOKENS, 1024, device=device)
    return {
        "step": lambda: unet(
            latents, 500, encoder_hidden_states=generated_states, encoder_hidden_states_1=text_states
        ),
        "decoding": _audioldm_decoding(seconds, device),
    }


def build_stable_audio_3(seconds: float, device: str) -> Parts:
    """Stable Audio 3's small denoiser, guidance-distilled, and its autoencoder SAME-S.

    Sixteen blocks of width 1024 come to 437 M parameters; the small model is published with 433 M.
    """
    from diffusers import AutoencoderSAME, StableAudio3DiTModel

    transformer = StableAudio3DiTModel(embed_dim=1024, depth=16, num_heads=16).to(device).eval()
    vae = AutoencoderSAME().to(device).eval()
    frames = max(1, round(seconds * vae.config.sampling_rate / vae.downsampling_ratio))
    latents = torch.randn(1, transformer.config.io_channels, frames, device=device)
    text_states = torch.randn(1, TEXT_TOKENS, transformer.config.cond_token_dim, device=device)
    duration = torch.randn(1, transformer.config.global_cond_dim, device=device)
    timestep = torch.full((1,), 0.5, device=device)
    return {
        "step": lambda: transformer(latents, timestep, text_states, duration),
        "decoding": lambda: vae.decode(latents),
    }


def build_ace_step(seconds: float, device: str) -> Parts:
    """ACE-Step 1.5's denoiser, guidance-distilled, and its autoencoder."""
    from diffusers import AceStepTransformer1DModel, AutoencoderOobleck

    transformer = AceStepTransformer1DModel(is_turbo=True).to(device).eval()
    vae = AutoencoderOobleck(downsampling_ratios=[2, 4, 4, 6, 10], decoder_input_channels=64, sampling_rate=48_000)
    vae = vae.to(device).eval()
    frames = 2 * max(1, round(seconds * 25 / 2))
    config = transformer.config
    latents = torch.randn(1, frames, config.audio_acoustic_hidden_dim, device=device)
    context = torch.randn(1, frames, config.in_channels - config.audio_acoustic_hidden_dim, device=device)
    states = torch.randn(1, 2 * TEXT_TOKENS, config.hidden_size, device=device)  # text, lyrics and timbre
    timestep = torch.full((1,), 0.5, device=device)
    return {
        "step": lambda: transformer(latents, timestep, timestep, states, context),
        "decoding": lambda: vae.decode(latents.transpose(1, 2)),
    }


def _embedded(device: str):
    from pipelines.pipeline_qamdt import QAMDTPipeline

    pipe = QAMDTPipeline.from_pretrained().to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _network(preset: str, device: str):
    from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel

    return QAMDTTransformer2DModel(**load_config(preset).model).to(device).eval()


def _steps(transformer, frames: int, device: str) -> Parts:
    """A step of our network with guidance, on a batch of two, and without."""
    config = transformer.config
    latents = torch.randn(2, config.in_channels, frames, config.sample_size[1], device=device)
    states = torch.randn(2, TEXT_TOKENS, config.cross_attention_dim, device=device)
    levels = torch.full((2,), 5, device=device)
    told = {}
    if config.use_quality_token:
        told["quality_level"] = levels
    if config.use_global_quality:
        told["global_quality"] = levels
    if config.use_frame_quality:
        told["frame_quality"] = torch.full((2, frames), 5.0, device=device)
    if config.num_music_features:
        told["music"] = torch.zeros(2, frames, config.num_music_features, device=device)
    timestep = torch.full((2,), 500, device=device)

    def step(count: int) -> object:
        some = {name: value[:count] for name, value in told.items()}
        return transformer(latents[:count], timestep[:count], states[:count], **some)

    return {"step": lambda: step(2), "unguided_step": lambda: step(1)}


def _audioldm_latents(seconds: float, device: str) -> torch.Tensor:
    """Latents with and without the prompt: `(2, channels, latent_frames, latent_bins)`."""
    frames = 8 * max(1, round(seconds * MEL_FRAMES_PER_SECOND / 32))  # what a U-Net can halve three times
    return torch.randn(2, 8, frames, 16, device=device)


def _audioldm_decoding(seconds: float, device: str) -> Callable[[], torch.Tensor]:
    """The autoencoder and the HiFi-GAN of AudioLDM."""
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        block_out_channels=(128, 256, 512),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
    )
    vocoder_config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        sampling_rate=16_000,
        upsample_initial_channel=1024,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
    )
    vae, vocoder = vae.to(device).eval(), SpeechT5HifiGan(vocoder_config).to(device).eval()
    latents = _audioldm_latents(seconds, device)[:1]
    return lambda: vocoder(vae.decode(latents).sample.squeeze(1))
