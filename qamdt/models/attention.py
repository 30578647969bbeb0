"""Attention of the QA-MDT transformer, in the form that diffusers' backends, fusion and caches work on."""

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn


class QAMDTAttnProcessor:
    """Multi-head attention through diffusers' choice of kernels."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "QAMDTAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        num_queries: int | None = None,
    ) -> torch.Tensor:
        context = encoder_hidden_states if attn.is_cross_attention else hidden_states
        queries = hidden_states[:, :num_queries]
        if attn.fused_projections and attn.is_cross_attention:
            query, (key, value) = attn.to_q(queries), attn.to_kv(context).chunk(2, dim=-1)
        elif attn.fused_projections:
            query, key, value = attn.to_qkv(context).chunk(3, dim=-1)
            query = query[:, :num_queries]
        else:
            query, key, value = attn.to_q(queries), attn.to_k(context), attn.to_v(context)

        hidden_states = dispatch_attention_fn(
            query.unflatten(-1, (attn.heads, -1)),
            key.unflatten(-1, (attn.heads, -1)),
            value.unflatten(-1, (attn.heads, -1)),
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out(hidden_states.flatten(2))


class QAMDTAttention(nn.Module, AttentionModuleMixin):
    """Self-attention, or cross-attention to text that was already projected to the width of the stream.

    Args:
        dim: Width of the token stream.
        num_heads: Number of attention heads; must divide `dim`.
        is_cross_attention: Whether keys and values come from the text.
    """

    _default_processor_cls = QAMDTAttnProcessor
    _available_processors = [QAMDTAttnProcessor]

    def __init__(self, dim: int, num_heads: int, *, is_cross_attention: bool = False):
        super().__init__()
        self.heads = num_heads
        self.is_cross_attention = is_cross_attention
        self.use_bias = True  # read by `fuse_projections`
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.set_processor(QAMDTAttnProcessor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        num_queries: int | None = None,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask, num_queries)
