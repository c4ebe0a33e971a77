"""A masked language model, asked what is hidden in texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tutti.core import RunError
from tutti.core.record import Asked, Record
from tutti.core.types import module_device

#: How people write what is hidden, whatever the tokenizer has for it.
MASKS = ("[MASK]", "<mask>")
#: Guesses that are told for each place.
_TOLD = 5


def require_masks(texts: Sequence[str], mask: str = MASKS[0]) -> None:
    """Raise RunError where nothing is hidden in one of `texts`. `mask`: how the tokenizer writes it."""
    for text in texts:
        if not any(written in text for written in (mask, *MASKS)):
            raise RunError(f"nothing is hidden in '{text}'", f"write {MASKS[0]} in place of a token")


@dataclass
class Filler:
    """`tokenizer`: transformers'."""

    model: PreTrainedModel
    tokenizer: Any

    def predict(self, records: Sequence[Asked]) -> list[dict[str, Any]]:
        """What it guesses in `records`, texts (or mappings with a field `text`) with a mask at each hidden token.

        Of each: `text`, filled with the likeliest tokens, and in `masks`, for each place in order, the likeliest tokens
        with their chances.

        Raises:
            RunError: nothing is hidden in a text, or it is longer than the model can see.
        """
        return [self._fill(self._read(record)) for record in records]

    def _read(self, record: Asked) -> str:
        fields = record.fields if isinstance(record, Record) else record
        text = fields if isinstance(fields, str) else fields.get("text")
        if not isinstance(text, str):
            where = record.origin if isinstance(record, Record) else record
            raise RunError(f"{where} has no text", "give texts, or a field `text`")
        return text

    @torch.inference_mode()
    def _fill(self, text: str) -> dict[str, Any]:
        tokenizer, mask = self.tokenizer, self.tokenizer.mask_token
        require_masks([text], mask)
        asked = text
        for written in MASKS:
            asked = asked.replace(written, mask)
        ids = torch.tensor([tokenizer(asked)["input_ids"]], device=module_device(self.model))
        places = (ids[0] == tokenizer.mask_token_id).nonzero().squeeze(1)
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and ids.shape[1] > most:
            raise RunError(
                f"a text has {ids.shape[1]} tokens, and the model sees {most} at once", "give shorter texts"
            )
        self.model.eval()  # type: ignore[no-untyped-call]
        chances = self.model(input_ids=ids).logits[0, places].float().softmax(-1)
        best = chances.topk(min(_TOLD, chances.shape[-1]))
        filled = ids[0].clone()
        filled[places] = best.indices[:, 0]
        return {
            "text": tokenizer.decode(filled, skip_special_tokens=True),
            "masks": [
                [
                    {"token": tokenizer.decode([number]), "score": round(score, 6)}
                    for number, score in zip(numbers, scores, strict=True)
                ]
                for numbers, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ],
        }
