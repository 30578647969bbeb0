"""Embeddings of whole sentences by the sentence encoder that the package installs (`qamdt.embedded`)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from qamdt.embedded import load_text_encoder


if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase


@functools.cache
def load_sentence_encoder() -> tuple[PreTrainedTokenizerBase, BertModel]:
    """Loads the tokenizer and the encoder, in evaluation mode and frozen; loaded once per process."""
    tokenizer, encoder = load_text_encoder()
    return tokenizer, encoder.eval().requires_grad_(False)


@torch.no_grad()
def sentence_embeddings(texts: list[str], batch_size: int = 64) -> torch.Tensor:
    """Unit sentence embeddings `(len(texts), 384)`: the mean of the token states, as the encoder was trained."""
    tokenizer, encoder = load_sentence_encoder()
    batches = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(
            texts[start : start + batch_size], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        states = encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None].to(states)
        batches.append(torch.nn.functional.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1))
    return torch.cat(batches)
