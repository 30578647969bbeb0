"""The encoders that the scorer stands on: one turns waveforms into tokens, the other prompts.

A name says which: "embedded" for the encoder that ships with the package, a folder, or a Hub id, with `@revision`
behind it if wanted. Whisper encodes a clip as it is, which costs less the shorter the clip; with `+30s` behind its name
it pads every clip to thirty seconds first, as Whisper was trained. The two are not the same features.

An encoder says in `name` what it is, down to the commit, and that name loads the same encoder again. Parameters are
frozen; `requires_grad_(True)` makes them trainable.

Shapes: B batch, S samples, N mel frames, T audio tokens, L text tokens, D width.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from pathlib import Path
from typing import Any, Protocol

import soxr
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, WhisperFeatureExtractor
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from qamdt.audio import SAMPLING_RATE
from qamdt.complete_weights import load_complete
from qamdt.files import read_json
from whisq.embedded import load_audio_tower
from whisq.modeling_audio_tower import AudioTower
from whisq.modeling_clap import MiniClap
from whisq.sentence_encoder import load_sentence_encoder


EMBEDDED = "embedded"
EMBEDDED_TEXT_ENCODER = "all-MiniLM-L6-v2"
PADDED_SUFFIX = "+30s"
MAX_TEXT_TOKENS = 512

logger = logging.getLogger(__name__)


class AudioEncoder(Protocol):
    """What any audio encoder offers; all of them are modules, so they also move with `to(device)`.

    Attributes:
        name: What it is, as `load_audio_encoder` takes it.
        hidden_size: Width of its tokens.
        frames_per_s: Tokens per second.
    """

    name: str
    hidden_size: int
    frames_per_s: float

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes clips of different lengths.

        Args:
            waveforms: Mono audio at 16 kHz in float32, `(batch, samples)`, shorter clips padded behind.
            lengths: Samples of each clip, integers `(batch,)`.

        Returns:
            Hidden states `(batch, audio_tokens, hidden_size)` in float32, and a mask `(batch, audio_tokens)`, true for
            real tokens.
        """
        ...


class WhisperEncoderAlone(WhisperEncoder):
    """Whisper's encoder as any Whisper checkpoint holds it, with nothing to say about the decoder left behind."""

    _keys_to_ignore_on_load_unexpected = (r"decoder\.", r"proj_out\.")


class WhisperAudioEncoder(nn.Module):
    """The encoder of Whisper, which skips what is padded.

    The library's forward pass takes thirty seconds and no less, and attends to silence as to music. This one runs on as
    many frames as the longest clip has and hides padding from the shorter ones, so a batch gives what single clips
    give. With a full batch of the longest clips it computes what the library computes.

    Args:
        encoder: Whisper's encoder.
        name: What it is called.
        pads_to_limit: Whether to pad clips to the full thirty seconds and let them attend to the padding.
    """

    def __init__(self, encoder: WhisperEncoder, name: str, *, pads_to_limit: bool = False):
        super().__init__()
        self.encoder = encoder
        self.name = name
        self.pads_to_limit = pads_to_limit
        self.hidden_size = encoder.config.d_model
        max_frames = 2 * encoder.config.max_source_positions
        self.feature_extractor = WhisperFeatureExtractor(
            feature_size=encoder.config.num_mel_bins, chunk_length=max_frames // 100
        )
        self.frames_per_s = SAMPLING_RATE / self.feature_extractor.hop_length / 2

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes clips; see `AudioEncoder.encode`. Clips longer than Whisper's thirty seconds are refused."""
        check_waveforms(waveforms, lengths)
        max_samples = self.feature_extractor.n_samples
        if int(lengths.max()) > max_samples:
            raise ValueError(
                f"`waveforms` must be at most {max_samples / SAMPLING_RATE:g} s long for {self.name!r}, got a clip of "
                f"{int(lengths.max()) / SAMPLING_RATE:g} s; cut it into windows."
            )
        clips = [clip[:length].numpy() for clip, length in zip(waveforms.cpu(), lengths.tolist(), strict=True)]
        features = self.feature_extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        num_frames = -(-lengths // self.feature_extractor.hop_length)
        device = self.encoder.device
        return self.encode_features(features.to(device), num_frames.to(device))

    def encode_features(
        self, input_features: torch.Tensor, num_frames: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes mel spectrograms.

        Args:
            input_features: Log-mel of Whisper's scale, `(batch, mel_bins, frames)`.
            num_frames: Real frames of each clip, `(batch,)`.
        """
        num_tokens = (num_frames + 1) // 2  # the second convolution halves the rate
        longest = int(num_tokens.max())
        if not self.pads_to_limit:
            input_features = input_features[:, :, : 2 * longest]
            frames = torch.arange(input_features.shape[2], device=input_features.device)
            frame_mask = (frames < num_frames[:, None])[:, None]  # (B, 1, N)
        else:
            frame_mask = torch.ones_like(input_features[:, :1], dtype=torch.bool)

        # Both convolutions must meet zeros behind the end of a clip, which is what the edge of the longest one gives.
        encoder = self.encoder
        input_features = input_features.to(encoder.dtype) * frame_mask
        hidden_states = F.gelu(encoder.conv1(input_features)) * frame_mask  # (B, D, N)
        hidden_states = F.gelu(encoder.conv2(hidden_states)).mT  # (B, T, D)
        hidden_states = hidden_states + encoder.embed_positions.weight[: hidden_states.shape[1]]

        mask = torch.arange(longest, device=num_tokens.device) < num_tokens[:, None]  # (B, T)
        attention_mask = None
        if not self.pads_to_limit:
            attention_mask = create_bidirectional_mask(encoder.config, hidden_states, mask)
        for layer in encoder.layers:
            hidden_states = layer(hidden_states, attention_mask)
        return encoder.layer_norm(hidden_states)[:, :longest].float(), mask

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the encoder, for example after fine-tuning, to a folder that `load_audio_encoder` takes."""
        # The names are the encoder's own; "original" are those of the checkpoint that it came from.
        self.encoder.save_pretrained(folder, save_original_format=False)


class MuQAudioEncoder(nn.Module):
    """MuQ, a larger encoder made for music, from the package `muq`.

    It reads 24 kHz, to which the 16 kHz of the scorer are resampled, and knows no mask that reaches all of its layers,
    so clips pass one by one.

    Args:
        model: A `muq.MuQ`.
        name: What it is called.
    """

    _features = "melspec_2048"
    _sampling_rate = 24_000
    _min_samples = 24_000  # what is shorter than a second is padded with silence, too short for its layers as it is

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        # MuQ's settings are a plain dictionary, older than this one that transformers 5 asks for.
        model.model.conformer.config._attn_implementation = "eager"
        self.model = model
        self.name = name
        self.hidden_size = model.config.encoder_dim
        self.frames_per_s = float(model.config.label_rate)

    def encode(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes clips; see `AudioEncoder.encode`."""
        check_waveforms(waveforms, lengths)
        device = next(self.model.parameters()).device
        states = []
        for waveform, length in zip(waveforms.cpu(), lengths.tolist(), strict=True):
            resampled = soxr.resample(waveform[:length].numpy(), SAMPLING_RATE, self._sampling_rate)
            resampled = torch.from_numpy(resampled).to(device)
            resampled = F.pad(resampled, (0, max(0, self._min_samples - len(resampled))))
            hidden_states = self._forward(resampled[None])[0].float()
            states.append(hidden_states[: math.ceil(length / SAMPLING_RATE * self.frames_per_s)])
        num_tokens = torch.tensor([len(state) for state in states], device=device)
        padded = nn.utils.rnn.pad_sequence(states, batch_first=True)  # (B, T, D)
        return padded, torch.arange(padded.shape[1], device=device) < num_tokens[:, None]

    def _forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Maps waveforms at 24 kHz `(batch, samples)` to the last hidden states `(batch, audio_tokens, hidden_size)`.

        The parts of MuQ one by one: as a whole it also asks for the states of all layers, which the conformer of
        transformers 5 no longer returns.
        """
        muq = self.model.model
        features = muq.normalize(muq.preprocessing(waveforms, features=[self._features]))[self._features]
        return muq.conformer(muq.conv(features)).last_hidden_state

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the encoder, for example after fine-tuning, to a folder that `load_audio_encoder` takes."""
        self.model.save_pretrained(folder)


class TextEncoder(nn.Module):
    """Any text model of transformers: the last hidden states of the bare prompt, without chat template.

    Args:
        tokenizer: Its tokenizer.
        model: The model.
        name: What it is called.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str):
        super().__init__()
        tokenizer.padding_side = "right"  # decoders pad on the left; behind, padding changes no token before it
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        self.model = model
        self.name = name
        self.hidden_size = model.config.hidden_size
        positions = getattr(model.config, "max_position_embeddings", MAX_TEXT_TOKENS)
        self.max_tokens = min(positions, tokenizer.model_max_length, MAX_TEXT_TOKENS)

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes prompts; one longer than `max_tokens` is cut, with a warning.

        Returns:
            Hidden states `(batch, text_tokens, hidden_size)` in float32, and a mask `(batch, text_tokens)`, true for
            real tokens.
        """
        empty = [index for index, text in enumerate(texts) if not text.strip()]
        if empty or not texts:
            where = f"texts[{empty[0]}]" if empty else "texts"
            raise ValueError(f"`texts` must be prompts of at least one word, got nothing in {where}.")
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        tokens = tokens.to(self.model.device)
        mask = tokens["attention_mask"].bool()
        if mask.shape[1] == self.max_tokens:
            logger.warning("A prompt of %d tokens or more was cut at %d.", self.max_tokens, self.max_tokens)
        states = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return states.float(), mask

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the encoder, for example after fine-tuning, to a folder that `load_text_encoder` takes."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_audio_encoder(name_or_path: str | os.PathLike, *, revision: str | None = None) -> AudioEncoder:
    """Loads a frozen audio encoder.

    Args:
        name_or_path: "embedded", or folder or Hub id of a Whisper (`+30s` behind it pads clips to thirty seconds) or
            MuQ model, or the folder of a CLAP that `whisq.train_clap` wrote or of the audio tower of one. `id@revision`
            names a revision.
        revision: Branch, tag or commit on the Hub.
    """
    name, revision = split_name(name_or_path, revision)
    name, pads_to_limit = name.removesuffix(PADDED_SUFFIX), name.endswith(PADDED_SUFFIX)
    if name == EMBEDDED and not pads_to_limit:
        tower = load_audio_tower()
        tower.name = f"{EMBEDDED}@{tower.config.name}"
        check_revision(tower.name, revision)
        return tower

    folder_or_id, commit, full_name = locate(name, revision)
    config = read_config(folder_or_id, commit)
    if config.get("model_type") == "whisper":
        suffix = PADDED_SUFFIX if pads_to_limit else ""
        encoder = load_whisper(folder_or_id, commit)
        return freeze(WhisperAudioEncoder(encoder, full_name + suffix, pads_to_limit=pads_to_limit))
    if pads_to_limit:
        raise ValueError(f"{PADDED_SUFFIX!r} is for Whisper, got it behind {full_name!r}, which is no Whisper model.")
    if "w2v2_config" in config:
        return freeze(load_muq(folder_or_id, commit, full_name))
    if config.get("_class_name") == "MiniClap":
        tower = load_complete(MiniClap, folder_or_id, revision=commit, use_safetensors=True).audio_tower
        tower.name = full_name
        return freeze(tower)
    if config.get("_class_name") == "AudioTower":
        tower = load_complete(AudioTower, folder_or_id, revision=commit, use_safetensors=True)
        tower.name = full_name
        return freeze(tower)
    raise ValueError(
        "`name_or_path` must name a Whisper, MuQ, `MiniClap` or `AudioTower` model, "
        f"got {full_name!r}, whose config.json is of none of them."
    )


def load_text_encoder(name_or_path: str | os.PathLike, *, revision: str | None = None) -> TextEncoder:
    """Loads a frozen text encoder.

    Args:
        name_or_path: "embedded", or folder or Hub id of any text model with a tokenizer, such as Qwen/Qwen3-0.6B; of an
            encoder-decoder the encoder is taken. `id@revision` names a revision.
        revision: Branch, tag or commit on the Hub.
    """
    name, revision = split_name(name_or_path, revision)
    if name == EMBEDDED:
        full_name = f"{EMBEDDED}@{EMBEDDED_TEXT_ENCODER}"
        check_revision(full_name, revision)
        return freeze(TextEncoder(*load_sentence_encoder(), full_name))

    folder_or_id, commit, full_name = locate(name, revision)
    tokenizer = AutoTokenizer.from_pretrained(folder_or_id, revision=commit)
    model = load_complete(AutoModel, folder_or_id, revision=commit, dtype=torch.float32, use_safetensors=True)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return freeze(TextEncoder(tokenizer, model, full_name))


def load_whisper(folder_or_id: str, commit: str | None) -> WhisperEncoder:
    """Loads the encoder out of any Whisper checkpoint, in float32 and without the decoder."""
    return load_complete(
        WhisperEncoderAlone,
        folder_or_id,
        revision=commit,
        dtype=torch.float32,
        use_safetensors=True,
        key_mapping={r"^(model\.)?encoder\.": ""},
    )


def load_muq(folder_or_id: str, commit: str | None, full_name: str) -> MuQAudioEncoder:
    """Loads MuQ, if its package is there."""
    try:
        from muq import MuQ
    except ImportError as error:
        raise ImportError(
            f"{full_name!r} needs the package `muq` and a torchaudio built for torch {torch.__version__}; "
            f"install them with `pip install muq`. The import said: {error}"
        ) from error
    return MuQAudioEncoder(MuQ.from_pretrained(folder_or_id, revision=commit), full_name)


def split_name(name_or_path: str | os.PathLike, revision: str | None) -> tuple[str, str | None]:
    """Splits `id@revision` (with `+30s` behind either) into the name, which keeps `+30s`, and the revision."""
    name = os.fspath(name_or_path)
    padded = PADDED_SUFFIX if name.endswith(PADDED_SUFFIX) else ""
    name = name.removesuffix(PADDED_SUFFIX)
    if "@" in name and not Path(name).is_dir():
        name, _, named_revision = name.partition("@")
        if revision not in (None, named_revision):
            raise ValueError(f"`revision` must agree with the name, got {revision!r} for {os.fspath(name_or_path)!r}.")
        revision = named_revision
    return name + padded, revision


def check_revision(full_name: str, revision: str | None) -> None:
    """Refuses a revision of an embedded encoder that is not the one this package ships."""
    if revision not in (None, full_name.partition("@")[2]):
        raise ValueError(
            f"`revision` must be that of the embedded encoder, {full_name!r}, got {revision!r}; a model that stands on "
            "another one needs the package version that it was trained with."
        )


def locate(name: str, revision: str | None) -> tuple[str, str | None, str]:
    """Finds an encoder.

    Returns:
        Folder or Hub id, commit on the Hub (`None` for a folder), and the name that says both.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"`revision` must be left out for a folder, got {revision!r} for {name!r}.")
        return name, None, name
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise FileNotFoundError(
            f'`name_or_path` must be "{EMBEDDED}", an existing folder or a Hub id such as owner/name, got {name!r}.'
        )
    from huggingface_hub import hf_hub_download

    # A downloaded file lies in a folder named after its commit.
    commit = Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    return name, commit, f"{name}@{commit}"


def read_config(folder_or_id: str, commit: str | None) -> dict[str, Any]:
    """Reads the config.json of an encoder."""
    if commit is None:
        path = Path(folder_or_id) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"`name_or_path` must be a folder with a config.json, got {folder_or_id!r}.")
    else:
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(folder_or_id, "config.json", revision=commit))
    return read_json(path)


def freeze(encoder: nn.Module) -> nn.Module:
    """Puts an encoder in evaluation mode and takes its parameters out of training."""
    return encoder.eval().requires_grad_(False)


def fingerprint(module: nn.Module) -> str:
    """Returns a digest of weights, so that what came from others is not taken for theirs."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_waveforms(waveforms: torch.Tensor, lengths: torch.Tensor) -> None:
    """Refuses waveforms that are not `(batch, samples)`, and lengths that do not fit them."""
    if waveforms.ndim != 2 or lengths.shape != waveforms.shape[:1]:
        raise ValueError(
            "`waveforms` must have shape (batch, samples) and `lengths` (batch,), "
            f"got {tuple(waveforms.shape)} and {tuple(lengths.shape)}."
        )
    if lengths.min() < 1 or lengths.max() > waveforms.shape[1]:
        raise ValueError(
            f"`lengths` must lie between 1 and the {waveforms.shape[1]} samples of `waveforms`, got {lengths.tolist()}."
        )
