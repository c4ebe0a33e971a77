"""Continuations of prompts, several at once, from any Hugging Face causal model.

transformers' `generate` does the decoding (with its key-value cache). What is added: prompts of different
lengths side by side, a seed that leaves the caller's random numbers alone, and texts longer than the
model's context: then the newest half of the context is read again and the text goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tutti.models.prompts import before_and_after, read_prompt


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[str] | Sequence[list[int]],
    new_tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    suffix: str = "",
    beams: int = 1,
) -> list[str]:
    """What `model` writes after each of `prompts` (the prompt itself is not repeated).

    Args:
        model: any causal language model; its mode (training or not) and the caller's random state stay as they are.
        tokenizer: a Hugging Face tokenizer.
        prompts: texts, or their tokens; may be of different lengths, and empty.
        new_tokens: at most so many tokens each; the end token stops earlier.
        temperature: 0 always takes the likeliest token.
        top_k: sample among the k likeliest; 0: among all.
        seed: same seed, same prompts, same texts.
        suffix: what comes after what it writes, if anything; of a model that learned to fill in (`core.infilling`).
        beams: with temperature 0, texts that are followed side by side, of which the likeliest is taken.

    Raises:
        ModelError: there is a suffix, and the tokenizer has no marks for it.
    """
    if not prompts or new_tokens < 1:
        return ["" for _ in prompts]
    ends = _end_tokens(model, tokenizer)
    starts: list[list[int]] = [
        read_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts
    ]
    if suffix:
        starts = [before_and_after(tokenizer, start, suffix) for start in starts]
    starts = [start or [ends[0]] for start in starts]
    device = next(model.parameters()).device
    training = model.training
    model.train(False)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            written = _continue(model, starts, new_tokens, ends, _decoding(temperature, top_k, beams))
    finally:
        model.train(training)
    return [_text(tokenizer, start, new) for start, new in zip(starts, written, strict=True)]


def generate_from(
    model: PreTrainedModel, tokenizer: Any, given: Sequence[Sequence[int]], new_tokens: int, beams: int = 1
) -> list[str]:
    """What an encoder-decoder writes to each of the tokens `given` (which end as its texts do), at most `new_tokens`:
    always the likeliest token, or the likeliest of so many texts (`beams`) that are followed side by side."""
    longest = max(map(len, given), default=0)
    if not longest:
        return ["" for _ in given]
    whole: Any = model
    pad = whole.config.pad_token_id
    device, training = next(model.parameters()).device, model.training
    ids = torch.tensor([[*one, *[pad] * (longest - len(one))] for one in given], device=device)
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in given], device=device)
    model.train(False)
    try:
        with torch.no_grad():
            written: list[list[int]] = whole.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, **_decoding(0.0, 0, beams)
            ).tolist()
    finally:
        model.train(training)
    texts: list[str] = tokenizer.batch_decode(
        written, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts


def _decoding(temperature: float, top_k: int, beams: int) -> dict[str, Any]:
    """How transformers chooses tokens; what the model's own settings say of it does not count."""
    if temperature > 0:
        return {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": None, "num_beams": 1}
    return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "num_beams": beams}


def _continue(
    model: Any, starts: list[list[int]], new_tokens: int, ends: list[int], decoding: dict[str, Any]
) -> list[list[int]]:
    """New tokens of every text, in rounds that fit the model's context."""
    context = _context(model)
    written: list[list[int]] = [[] for _ in starts]
    going = list(range(len(starts)))
    while going:
        # Texts still going are all equally long in new tokens, so one round serves them all.
        left = new_tokens - len(written[going[0]])
        if left <= 0:
            break
        reach = max(len(starts[i]) + len(written[i]) for i in going)
        if reach + left > context:
            reach = min(reach, max(1, context // 2))
        room = min(left, max(1, context - reach))
        tails = [(starts[i] + written[i])[-reach:] for i in going]
        for i, new in zip(going, _round(model, tails, room, ends, decoding), strict=True):
            written[i] += new
        going = [i for i in going if written[i][-1] not in ends]
    return [new[: _length(new, ends)] for new in written]


def _round(
    model: Any, texts: list[list[int]], new_tokens: int, ends: list[int], decoding: dict[str, Any]
) -> list[list[int]]:
    """`new_tokens` more of every text; a text that ends sooner is cut after its end token, the first of `ends`."""
    longest = max(map(len, texts))
    device = next(model.parameters()).device
    # On the left, so that every text continues at the same column.
    ids = torch.tensor([[ends[0]] * (longest - len(text)) + text for text in texts], device=device)
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts], device=device)
    output: Tensor = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
        use_cache=True,
        **decoding,
    )
    new: list[list[int]] = output[:, longest:].tolist()
    return [tokens[: _length(tokens, ends) + 1] for tokens in new]


def _length(tokens: list[int], ends: list[int]) -> int:
    """How many come before the first end."""
    return next((at for at, token in enumerate(tokens) if token in ends), len(tokens))


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """All that end what it writes: of texts first, then others, such as that of a turn in a talk."""
    found: list[int] = []
    for settings in (model.config.get_text_config(decoder=True), model.generation_config, tokenizer):
        known = None if settings is None else settings.eos_token_id
        if settings is tokenizer and found:
            break
        found += known if isinstance(known, list) else [] if known is None else [known]
    return list(dict.fromkeys(map(int, found))) or [0]


def _context(model: Any) -> int:
    """Tokens that the model was made to see at once."""
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(context) if context else 1 << 30


def _text(tokenizer: Any, start: list[int], new: list[int]) -> str:
    """The new tokens as text, decoded after their prompt: some letters only come out in company."""
    before: str = tokenizer.decode(start, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole: str = tokenizer.decode(start + new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if whole.startswith(before):
        return whole[len(before) :]
    alone: str = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return alone
