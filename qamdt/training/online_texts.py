"""The text encoder in the loop of the training, for corpora with more texts than a disk holds states of."""

from collections import OrderedDict
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qamdt.training.dataset import Sample


CACHE_BYTES = 512 * 2**20  # in each process; about 35,000 captions of the embedded text encoder


class OnlineTexts:
    """Encodes the texts of samples, all of a batch at once; recent ones are kept, in half precision as cached ones are.

    Args:
        tokenizer: Tokenizer of the text encoder.
        encoder: The text encoder, where it is to compute.
        max_tokens: Where longer texts are cut.
        cache_bytes: How much memory may be taken by states of recent texts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: PreTrainedModel,
        *,
        max_tokens: int,
        cache_bytes: int = CACHE_BYTES,
    ):
        self._tokenizer, self._encoder, self._max_tokens = tokenizer, encoder.eval(), max_tokens
        self._left = cache_bytes
        self._states: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.num_encoded = 0

    def fill(self, samples: list[Sample]) -> list[Sample]:
        """Returns samples with the states of their texts, where they had none."""
        missing = sorted({sample.text for sample in samples if sample.encoder_hidden_states is None})
        states = {text: self._states[text] for text in missing if text in self._states}
        states |= self._encode([text for text in missing if text not in states])
        for text in missing:
            self._keep(text, states[text])
        return [
            sample
            if sample.encoder_hidden_states is not None
            else replace(sample, encoder_hidden_states=states[sample.text].float())
            for sample in samples
        ]

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        if not texts:
            return {}
        self.num_encoded += len(texts)
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._encoder.device)
        hidden_states = self._encoder(**tokens).last_hidden_state.half().cpu()  # (B, L, D)
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        return {text: row[:length].clone() for text, row, length in zip(texts, hidden_states, lengths, strict=True)}

    def _keep(self, text: str, states: torch.Tensor) -> None:
        if text not in self._states:
            self._states[text] = states
            self._left -= states.nbytes
        self._states.move_to_end(text)
        while self._left < 0:
            _, oldest = self._states.popitem(last=False)
            self._left += oldest.nbytes
