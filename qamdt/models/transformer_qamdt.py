"""QA-MDT, the quality-aware masked diffusion transformer for music (https://arxiv.org/abs/2405.15863).

Shapes: B batch, C latent channels, T latent frames (time), F latent bins (frequency), L text tokens,
N patches, K patches kept under masking, D width.
"""

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from qamdt.models.attention import QAMDTAttention
from qamdt.models.embeddings import (
    NUM_QUALITY_LEVELS,
    FrameQualityEmbedding,
    MusicEmbedding,
    PatchEmbed,
    known_or_unknown,
    masked_mean,
    resample_positions,
    sinusoidal_positions,
)


MOST_LAYERS = 1000


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scales and shifts normalised tokens, in one pass over them."""
    return torch.addcmul(shift, hidden_states, 1 + scale)


class QAMDTBlock(nn.Module):
    """Transformer block: self-attention, cross-attention to the text, feed-forward.

    Timestep and global conditions act through `modulation`, one tensor for all blocks, to which each block adds a
    learned table (adaLN-single). Cross-attention is neither normalised nor gated. With `num_queries`, only that many of
    the first tokens come out, and the others are there to be attended to.

    Args:
        dim: Width of the token stream.
        num_heads: Number of attention heads; must divide `dim`.
        mlp_ratio: Width of the feed-forward layer relative to `dim`.
        has_skip: Whether the block takes a long skip connection.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, *, has_skip: bool):
        super().__init__()
        self.skip_linear = nn.Linear(2 * dim, dim) if has_skip else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = QAMDTAttention(dim, num_heads)
        self.cross_attn = QAMDTAttention(dim, num_heads, is_cross_attention=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.ff = FeedForward(dim, inner_dim=int(dim * mlp_ratio), activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        skip: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        num_queries: int | None = None,
    ) -> torch.Tensor:
        # `positions` are added in here, not before, so that a cache that leaves the block out leaves them out too.
        if positions is not None:
            hidden_states = hidden_states + positions
        if self.skip_linear is not None:
            hidden_states = self.skip_linear(torch.cat([hidden_states, skip], dim=-1))

        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = (self.scale_shift_table + modulation).chunk(
            6, dim=1
        )  # each (B, 1, D)
        attn_input = modulate(self.norm1(hidden_states), shift_attn, scale_attn)
        attn_output = self.attn(attn_input, num_queries=num_queries)
        hidden_states = torch.addcmul(hidden_states[:, :num_queries], gate_attn, attn_output)
        hidden_states = hidden_states + self.cross_attn(hidden_states, encoder_hidden_states, encoder_attention_mask)
        ff_output = self.ff(modulate(self.norm2(hidden_states), shift_ff, scale_ff))
        return torch.addcmul(hidden_states, gate_ff, ff_output)


# A block returns one tensor, the tokens: all that diffusers' block caches need to know.
TransformerBlockRegistry.register(
    QAMDTBlock,
    TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)


class QAMDTTransformer2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Predicts noise (or whatever it was trained to) in music latents, from text and from quality at three levels.

    The published network is the default configuration. An encoder with long skip connections is followed by a decoder
    that sees the embedded input again in each of its blocks. In training, patches can be hidden from the encoder; the
    side interpolator then fills them in for the decoder (masked diffusion transformer, https://arxiv.org/abs/2303.14389).

    Every quality level is 1 (worst) to 5 (best), or 0 for unknown, and each of the three has its own embedding:
    of the clip, as a token before the patches; of each frame, added to the patches of its time column; of the data
    set that a clip is from, added to the timestep embedding.

    Args:
        sample_size: Latent frames and latent bins that the network is built for; other sizes work as well.
        patch_size: Latent frames and latent bins of a patch.
        patch_overlap: Latent frames and latent bins that neighbouring patches share.
        in_channels: Number of latent channels.
        num_layers: Number of encoder and decoder blocks; the side interpolator is not counted.
        num_decoder_layers: How many of them are decoder blocks; the rest must be an even number.
        num_attention_heads: Number of attention heads.
        attention_head_dim: Width of a head; heads times width is the width of the token stream.
        mlp_ratio: Width of the feed-forward layers relative to the token stream.
        cross_attention_dim: Width of the text states.
        interpolation_scale: Divides the coordinates of the fixed positions.
        use_quality_token: Whether the network knows the quality of the clip.
        use_frame_quality: Whether the network knows the quality of each frame.
        use_global_quality: Whether the network knows the quality of the data set.
        pool_text: Whether the mean of the text states is added to the timestep embedding.
        num_music_features: Numbers that describe what is played in a frame; 0 if the network does not know that.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["QAMDTBlock"]
    _repeated_blocks = ["QAMDTBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "quality", "norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, int] = (256, 16),
        patch_size: tuple[int, int] = (4, 1),
        patch_overlap: tuple[int, int] = (0, 0),
        in_channels: int = 8,
        num_layers: int = 28,
        num_decoder_layers: int = 8,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        mlp_ratio: float = 4.0,
        cross_attention_dim: int = 1024,
        interpolation_scale: float = 1.0,
        use_quality_token: bool = True,
        use_frame_quality: bool = False,
        use_global_quality: bool = False,
        pool_text: bool = False,
        num_music_features: int = 0,
    ):
        super().__init__()
        # Who wrote the config may be a stranger: building blocks without end would take all memory.
        if num_layers > MOST_LAYERS or not interpolation_scale > 0:
            raise ValueError(
                f"`num_layers` must be at most {MOST_LAYERS} and `interpolation_scale` above 0, got {num_layers} and "
                f"{interpolation_scale}."
            )
        num_encoder_layers = num_layers - num_decoder_layers
        if num_decoder_layers < 1 or num_encoder_layers < 0 or num_encoder_layers % 2:
            raise ValueError(
                "`num_decoder_layers` must be at least 1 and leave an even number of encoder blocks, got"
                f" num_layers={num_layers} and num_decoder_layers={num_decoder_layers}."
            )
        dim = num_attention_heads * attention_head_dim
        if dim % 4:
            raise ValueError(
                "`num_attention_heads` times `attention_head_dim` must be a multiple of 4 for the positions, got"
                f" {num_attention_heads} times {attention_head_dim}."
            )

        # Input.
        self.num_prefix_tokens = int(use_quality_token)
        self.patch_embed = PatchEmbed(in_channels, dim, patch_size, patch_overlap)
        self.native_grid_size = self.patch_embed.grid_size(sample_size)
        num_patches = self.native_grid_size[0] * self.native_grid_size[1]
        self.quality_embed = nn.Embedding(NUM_QUALITY_LEVELS, dim) if use_quality_token else None
        self.frame_quality_embed = FrameQualityEmbedding(dim) if use_frame_quality else None
        self.music_embed = MusicEmbedding(num_music_features, dim) if num_music_features else None

        # Conditions.
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(256, dim)
        self.global_quality_embed = nn.Embedding(NUM_QUALITY_LEVELS, dim) if use_global_quality else None
        self.pooled_text_embed = nn.Linear(cross_attention_dim, dim) if pool_text else None
        self.time_modulation = nn.Linear(dim, 6 * dim)
        self.text_embed = nn.Linear(cross_attention_dim, dim)

        # Encoder and decoder blocks in one list, in running order: the name is the one that diffusers' caches look for.
        self.transformer_blocks = nn.ModuleList(
            QAMDTBlock(dim, num_attention_heads, mlp_ratio, has_skip=index >= num_encoder_layers // 2)
            for index in range(num_layers)
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.side_interpolator = QAMDTBlock(dim, num_attention_heads, mlp_ratio, has_skip=False)
        self.decoder_positions = nn.Parameter(torch.zeros(1, num_patches, dim))

        # Output.
        self.norm_out = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, patch_size[0] * patch_size[1] * in_channels)

        self.gradient_checkpointing = False
        self._init_weights()

    def _init_weights(self):
        """Initialises as the published network; what it does not have starts without effect."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        for linear in (self.time_embed.linear_1, self.time_embed.linear_2, self.time_modulation, self.text_embed):
            nn.init.normal_(linear.weight, std=0.02)

        for block in [*self.transformer_blocks, self.side_interpolator]:
            # Published as one matrix of queries, keys and values (and one of keys and values), drawn as such.
            for linear in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
                nn.init.xavier_uniform_(linear.weight, gain=(2 / 4) ** 0.5)
            for linear in (block.cross_attn.to_k, block.cross_attn.to_v):
                nn.init.xavier_uniform_(linear.weight, gain=(2 / 3) ** 0.5)
            nn.init.zeros_(block.cross_attn.to_out.weight)
        nn.init.zeros_(self.proj_out.weight)

        if self.frame_quality_embed is not None:
            nn.init.zeros_(self.frame_quality_embed.embedding.weight)
        if self.music_embed is not None:
            nn.init.zeros_(self.music_embed.linear_2.weight)
        if self.global_quality_embed is not None:
            nn.init.zeros_(self.global_quality_embed.weight)
        if self.pooled_text_embed is not None:
            nn.init.zeros_(self.pooled_text_embed.weight)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        quality_level: torch.Tensor | None = None,
        frame_quality: torch.Tensor | None = None,
        global_quality: torch.Tensor | None = None,
        music: torch.Tensor | None = None,
        keep_ids: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Runs the network on noisy latents.

        Args:
            hidden_states: Noisy latents of shape `(batch, channels, latent_frames, latent_bins)`.
            timestep: Diffusion timesteps of shape `(batch,)`, integers or float32 whatever the dtype of the model.
            encoder_hidden_states: Text states of shape `(batch, text_tokens, cross_attention_dim)`.
            encoder_attention_mask: Shape `(batch, text_tokens)`, true for real tokens, at least one of them in each
                text. `None` if nothing is padded, which lets attention run on kernels that know no mask.
            quality_level: Quality of each clip, integers of shape `(batch,)`; `None` if unknown.
            frame_quality: Quality over time, of shape `(batch, frames)` at any frame rate. Fractions are allowed;
                between 0 and 1 the level is partly unknown. `None` if unknown.
            global_quality: Quality of the data set of each clip, integers of shape `(batch,)`; `None` if unknown.
            music: What is played over time, of shape `(batch, frames, num_music_features)` at any frame rate, as
                `qamdt.music.music_curve` describes it; zeros where it is unknown. `None` if nothing is known.
            keep_ids: Patches that the encoder may see, integers of shape `(batch, kept)` that count along frequency
                first, then along time. `None` shows it all of them and leaves out the side interpolator.
            return_dict: Whether to return an output object rather than a tuple.
        """
        self._check_inputs(hidden_states, timestep, quality_level, frame_quality, global_quality, music, keep_ids)
        sample_size = tuple(hidden_states.shape[2:])
        grid_size = self.patch_embed.grid_size(sample_size)

        # Conditions: the timestep with all that is pooled, and the text.
        temb = self.time_embed(self.time_proj(timestep).to(hidden_states.dtype))  # (B, D)
        if self.global_quality_embed is not None:
            temb = temb + self.global_quality_embed(known_or_unknown(global_quality, timestep))
        if self.pooled_text_embed is not None:
            temb = temb + self.pooled_text_embed(masked_mean(encoder_hidden_states, encoder_attention_mask))
        modulation = self.time_modulation(F.silu(temb)).unflatten(-1, (6, -1))  # (B, 6, D)
        if encoder_attention_mask is not None:
            encoder_attention_mask = encoder_attention_mask.bool()[:, None, None]  # (B, heads, queries, L)
        conditions = (modulation, self.text_embed(encoder_hidden_states), encoder_attention_mask)

        # Tokens: the quality of the clip, then the patches.
        tokens = self._embed_patches(hidden_states, grid_size, frame_quality, music)  # (B, N, D)
        if self.quality_embed is not None:
            quality_token = self.quality_embed(known_or_unknown(quality_level, timestep)).unsqueeze(1)
            tokens = torch.cat([quality_token, tokens], dim=1)  # (B, 1 + N, D)

        # Encoder: the first half of the blocks leaves its outputs to the second half, which takes the last one first.
        blocks = list(self.transformer_blocks)
        num_decoder_layers = self.config.num_decoder_layers
        encoder_blocks, decoder_blocks = blocks[:-num_decoder_layers], blocks[-num_decoder_layers:]
        hidden_states = tokens if keep_ids is None else self._keep_patches(tokens, keep_ids)  # (B, 1 + K, D)
        skips = []
        for block in encoder_blocks[: len(encoder_blocks) // 2]:
            hidden_states = self._run_block(block, hidden_states, *conditions)
            skips.append(hidden_states)
        for block in encoder_blocks[len(encoder_blocks) // 2 :]:
            hidden_states = self._run_block(block, hidden_states, *conditions, skips.pop())

        # Decoder: every block sees the embedded input again, hidden patches included.
        positions = resample_positions(self.decoder_positions, self.native_grid_size, grid_size)
        positions = F.pad(positions, (0, 0, self.num_prefix_tokens, 0))  # none for the quality token
        if keep_ids is not None:
            hidden_states = self._interpolate_hidden_patches(hidden_states, keep_ids, positions, conditions)
            positions = None
        for block in decoder_blocks:
            hidden_states = self._run_block(block, hidden_states, *conditions, tokens, positions)  # (B, 1 + N, D)
            positions = None

        # Output.
        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        patches = modulate(self.norm_out(hidden_states[:, self.num_prefix_tokens :]), shift, scale)
        sample = self.patch_embed.unpatchify(self.proj_out(patches), sample_size)  # (B, C, T, F)
        if not return_dict:
            return (sample,)
        return Transformer2DModelOutput(sample=sample)

    def fixed_positions(self, grid_size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Positions of the patches of a grid, of shape `(patches, dim)`, in float32."""
        return sinusoidal_positions(
            grid_size,
            self.native_grid_size,
            base_size=self.config.sample_size[0] // self.config.patch_size[0] * 2,
            dim=self.config.num_attention_heads * self.config.attention_head_dim,
            interpolation_scale=self.config.interpolation_scale,
            device=device,
        )

    def _embed_patches(
        self,
        latents: torch.Tensor,
        grid_size: tuple[int, int],
        frame_quality: torch.Tensor | None,
        music: torch.Tensor | None,
    ) -> torch.Tensor:
        """Patches with their fixed positions, and quality and music of their time column: `(batch, patches, dim)`."""
        tokens = self.patch_embed(latents)
        tokens = tokens + self.fixed_positions(grid_size, tokens.device).to(tokens.dtype)
        if self.frame_quality_embed is not None:
            if frame_quality is None:
                frame_quality = latents.new_zeros(latents.shape[0], 1)
            columns = self.frame_quality_embed(frame_quality, grid_size[0]).unsqueeze(2)  # (B, time, 1, D)
            tokens = (tokens.unflatten(1, grid_size) + columns).flatten(1, 2)
        if self.music_embed is not None:
            if music is None:
                music = latents.new_zeros(latents.shape[0], 1, self.config.num_music_features)
            columns = self.music_embed(music, grid_size[0]).unsqueeze(2)  # (B, time, 1, D)
            tokens = (tokens.unflatten(1, grid_size) + columns).flatten(1, 2)
        return tokens

    def _keep_patches(self, tokens: torch.Tensor, keep_ids: torch.Tensor) -> torch.Tensor:
        """The quality token and the patches that stay visible, in the order of `keep_ids`."""
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        return torch.cat([prefix, patches.gather(1, keep_ids[..., None].expand(-1, -1, tokens.shape[-1]))], dim=1)

    def _interpolate_hidden_patches(
        self, hidden_states: torch.Tensor, keep_ids: torch.Tensor, positions: torch.Tensor, conditions: tuple
    ) -> torch.Tensor:
        """Fills in the hidden patches with the side interpolator, from what the encoder made of the visible ones.

        Visible patches pass by unchanged. The quality token does not: as published, it takes the interpolator's value.
        """
        num_prefix_tokens, (batch_size, _, dim) = self.num_prefix_tokens, hidden_states.shape
        num_patches = positions.shape[1] - num_prefix_tokens
        is_visible = torch.zeros(batch_size, num_patches, device=keep_ids.device).scatter(1, keep_ids, 1.0)
        hidden_ids = is_visible.argsort(dim=1, stable=True)[:, : num_patches - keep_ids.shape[1]]
        order = torch.cat([hidden_ids, keep_ids], dim=1)[..., None].expand(-1, -1, dim)  # (B, N, D)

        # Visible patches stand last: they are attended to, and what would come out for them is never computed.
        prefix, visible = hidden_states[:, :num_prefix_tokens], hidden_states[:, num_prefix_tokens:]
        mask_tokens = self.mask_token.to(visible.dtype).expand(batch_size, hidden_ids.shape[1], -1)
        patch_positions = positions[:, num_prefix_tokens:].expand(batch_size, -1, -1)
        patches = torch.cat([mask_tokens, visible], dim=1) + patch_positions.gather(1, order)
        num_queries = num_prefix_tokens + hidden_ids.shape[1]
        filled = self._run_block(
            self.side_interpolator, torch.cat([prefix, patches], dim=1), *conditions, None, None, num_queries
        )

        patches = torch.cat([filled[:, num_prefix_tokens:], patches[:, hidden_ids.shape[1] :]], dim=1)
        patches = torch.empty_like(patches).scatter(1, order, patches)
        return torch.cat([filled[:, :num_prefix_tokens], patches], dim=1)

    def _run_block(self, block: QAMDTBlock, *inputs: torch.Tensor | None) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)

    def _check_inputs(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        quality_level: torch.Tensor | None,
        frame_quality: torch.Tensor | None,
        global_quality: torch.Tensor | None,
        music: torch.Tensor | None,
        keep_ids: torch.Tensor | None,
    ):
        if hidden_states.ndim != 4 or hidden_states.shape[1] != self.config.in_channels:
            raise ValueError(
                f"`hidden_states` must have shape (batch, {self.config.in_channels}, latent_frames, latent_bins), got"
                f" {tuple(hidden_states.shape)}."
            )
        batch_size = hidden_states.shape[0]
        if timestep.shape != (batch_size,):
            raise ValueError(f"`timestep` must have shape ({batch_size},), got {tuple(timestep.shape)}; expand it.")
        for name, value, option, num_axes in (
            ("quality_level", quality_level, "use_quality_token", 1),
            ("frame_quality", frame_quality, "use_frame_quality", 2),
            ("global_quality", global_quality, "use_global_quality", 1),
            ("music", music, "num_music_features", 3),
        ):
            if value is None:
                continue
            if not self.config[option]:
                raise ValueError(f"`{name}` was given to a model with `{option}={self.config[option]}`; pass None.")
            if value.ndim != num_axes or value.shape[0] != batch_size:
                shape = ("batch", "frames", "features")[:num_axes]
                raise ValueError(
                    f"`{name}` must have {num_axes} axes ({', '.join(shape)}) and a batch of {batch_size}, got shape"
                    f" {tuple(value.shape)}."
                )
        if music is not None and music.shape[2] != self.config.num_music_features:
            raise ValueError(
                f"`music` must have {self.config.num_music_features} features a frame, got {music.shape[2]}; "
                "`qamdt.music.music_curve` makes them."
            )
        if keep_ids is not None and (keep_ids.ndim != 2 or keep_ids.shape[0] != batch_size):
            raise ValueError(f"`keep_ids` must have shape ({batch_size}, kept), got {tuple(keep_ids.shape)}.")
