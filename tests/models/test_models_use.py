"""Generation, export and the count of operations, against plain transformers and torch's own counter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tutti.config import Config
from tutti.config.model import ModelConfig
from tutti.core import ModelError, RunError
from tutti.models import (
    build_model,
    count_parameters,
    export_model,
    flops_per_masked_token,
    flops_per_token,
    generate,
)
from tutti.models.tuning import tune
from tutti.tasks import CausalLanguageModelling

TEXT = "To be, or not to be, that is the question: whether 'tis nobler — ünïcödé 🙂 — in the mind to suffer"


def _bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def _characters() -> PreTrainedTokenizerFast:
    vocabulary = {letter: i for i, letter in enumerate(["<|end|>", *sorted(set(TEXT))])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def _model(vocabulary: int, **config: Any) -> Any:
    asked = ModelConfig(**(config or {"size": "100K"}))
    model, _ = build_model(asked, vocabulary=vocabulary, sequence=32, seed=0, end_token=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # opinions strong enough that no two tokens tie
    return model


GPT2 = {"config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}}


@pytest.mark.parametrize("make", [_bpe, _characters])
@pytest.mark.parametrize("config", [{"size": "100K"}, GPT2])
def test_greedy_is_the_likeliest_token_each_time(make: Any, config: dict[str, Any]) -> None:
    tokenizer = make()
    model = _model(len(tokenizer), **config)
    prompts = ["To be", "in the mind to suffer", "q"]
    texts = generate(model, tokenizer, prompts, 8, temperature=0)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = len(ids)
        for _ in range(8):
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 0:
                ids.pop()
                break
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert text == whole[len(tokenizer.decode(ids[:start])) :]


def test_prompts_begin_as_their_tokenizer_begins_texts() -> None:
    """Llama's and Gemma's put a token before a text; what they write is what transformers' own way writes."""
    tokenizer = _bpe()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    model = _model(len(tokenizer))
    (bare,) = generate(model, tokenizer, ["To be"], 8, temperature=0)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    given = tokenizer(["To be", ""], return_tensors=None)["input_ids"]
    assert given[0][0] == tokenizer.bos_token_id and given[1] == [tokenizer.bos_token_id]
    written = []
    for ids in given:
        new = model.eval().generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
        written.append(tokenizer.decode(new, skip_special_tokens=True))
    assert generate(model, tokenizer, ["To be", ""], 8, temperature=0) == written
    assert bare != written[0]


def test_sampling_follows_the_seed_and_leaves_the_callers_dice() -> None:
    tokenizer = _bpe()
    model = _model(len(tokenizer)).train()
    CausalLanguageModelling(model)  # with the attention that models are trained with
    state = torch.random.get_rng_state()
    one = generate(model, tokenizer, ["To be", "or"], 20, seed=1)
    assert one == generate(model, tokenizer, ["To be", "or"], 20, seed=1)
    assert one != generate(model, tokenizer, ["To be", "or"], 20, seed=2)
    assert model.training and torch.equal(state, torch.random.get_rng_state())


def test_top_k_of_one_is_greedy() -> None:
    tokenizer = _bpe()
    model = _model(len(tokenizer))
    greedy = generate(model, tokenizer, ["To be"], 12, temperature=0)
    assert generate(model, tokenizer, ["To be"], 12, temperature=1.0, top_k=1) == greedy


def test_beams_find_the_likeliest_text_where_the_likeliest_token_misleads() -> None:
    tokenizer = _characters()
    model = _model(len(tokenizer)).eval()
    pairs = torch.cartesian_prod(torch.arange(len(tokenizer)), torch.arange(len(tokenizer)))
    misled = 0
    prompts = [TEXT[:length] for length in range(1, 25)]
    found = generate(model, tokenizer, prompts, 2, temperature=0, beams=len(tokenizer))
    for prompt, text in zip(prompts, found, strict=True):
        # Every text of two tokens behind the prompt: so many beams leave none of them out.
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            chances = model(torch.cat([ids.expand(len(pairs), -1), pairs], 1)).logits.log_softmax(-1)
        first = chances[:, -3].gather(1, pairs[:, :1])[:, 0]
        sums = first + chances[:, -2].gather(1, pairs[:, 1:])[:, 0]
        sums = sums.where(pairs[:, 0] != 0, 2 * first)  # one that ends at once counts by its mean
        best = pairs[int(sums.argmax())]
        assert text == tokenizer.decode(best[: int(best[0] != 0) * 2], skip_special_tokens=True)
        misled += int(best[0]) != int(first.argmax()) // len(tokenizer)
    assert misled >= 3


@pytest.mark.parametrize("config", [{"size": "100K"}, GPT2])
def test_goes_on_past_the_context(config: dict[str, Any]) -> None:
    tokenizer = _bpe()
    model = _model(len(tokenizer), **config)
    with torch.no_grad():  # never the end token
        model.get_output_embeddings().weight[0] = 0
    long = "be " * 60
    texts = generate(model, tokenizer, [long, "x"], 100, temperature=1.0)
    counts = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert all(count > 40 for count in counts)


def test_stops_at_the_end_token() -> None:
    tokenizer = _characters()
    model = _model(len(tokenizer))
    ends = torch.zeros(len(tokenizer))
    ends[0] = 1e4

    def always_end(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + ends

    model.get_output_embeddings().register_forward_hook(always_end)
    assert generate(model, tokenizer, ["To", "be or"], 10) == ["", ""]
    assert generate(model, tokenizer, [], 10) == [] and generate(model, tokenizer, ["a"], 0) == [""]


def test_an_empty_prompt_starts_a_document() -> None:
    tokenizer = _bpe()
    assert len(generate(_model(len(tokenizer)), tokenizer, [""], 5)) == 1


_PLAIN = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for directory in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("To be, or not to be", return_tensors="pt")["input_ids"]
    torch.save({"ids": ids, "logits": model(ids).logits, "attention": model.config._attn_implementation,
                "text": tokenizer.decode(ids[0]), "end": model.generation_config.eos_token_id}, directory + ".pt")
assert not any(name.split(".")[0] == "tutti" for name in sys.modules)
"""


def test_export_opens_in_plain_transformers_with_the_same_logits(tmp_path: Path) -> None:
    tokenizer = _bpe()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    models = {"llama": _model(len(tokenizer)), "gpt2": _model(len(tokenizer), **GPT2)}
    for name, model in models.items():
        destination = tmp_path / "run" / name
        trained = CausalLanguageModelling(model).model
        assert export_model(trained, tmp_path / "tokenizer", destination) == destination
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["gpt2", "llama"]
    script = tmp_path / "plain.py"
    script.write_text(_PLAIN, encoding="utf-8")
    directories = [str(tmp_path / "run" / name) for name in models]
    subprocess.run([sys.executable, str(script), *directories], check=True, cwd=tmp_path)
    for name, model in models.items():
        seen = torch.load(tmp_path / "run" / f"{name}.pt")
        assert seen["text"] == "To be, or not to be" and seen["end"] == 0 and seen["attention"] == "sdpa"
        assert torch.equal(seen["logits"], model.eval()(seen["ids"]).logits)


def test_export_replaces_and_takes_other_weights(tmp_path: Path) -> None:
    tokenizer = _bpe()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = _model(len(tokenizer))
    destination = tmp_path / "export"
    export_model(model, tmp_path / "tokenizer", destination)
    (destination / "left-over").touch()
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    export_model(model, tmp_path / "tokenizer", destination, state=state)
    assert not (destination / "left-over").exists()
    reread, _ = build_model(
        ModelConfig(path=str(destination)), vocabulary=len(tokenizer), sequence=32, seed=0, end_token=0
    )
    assert all((parameter == 0.5).all() for parameter in reread.parameters())
    assert "_attn_implementation" not in json.loads((destination / "config.json").read_text(encoding="utf-8"))


def test_export_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no Hugging Face format"):
        export_model(torch.nn.Linear(2, 2), tmp_path, tmp_path / "export")
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        export_model(_model(64), tmp_path, tmp_path / "file" / "export")


@pytest.mark.parametrize("tied", [True, False])
def test_operations_against_torchs_counter(tied: bool) -> None:
    sequence = 64
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    asked = ModelConfig(config=config)
    model, _ = build_model(asked, vocabulary=100, sequence=sequence, seed=0, end_token=0)
    model.set_attn_implementation("eager")  # torch's counter does not know every fused attention
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(sequence)[None], use_cache=False).logits.sum().backward()
    # Causal attention needs half of what eager attention computes.
    attention = 3 * 6.0 * 64 * sequence
    assert flops_per_token(model, sequence) == pytest.approx(
        counter.get_total_flops() / sequence - attention, rel=0.02
    )
    counts = count_parameters(model)
    assert counts.looked_up == 6400 and counts.total == sum(p.numel() for p in model.parameters())
    assert counts.matmul == counts.total if tied else counts.total - 6400


@pytest.mark.parametrize("method", ["full", "last", "lora"])
@pytest.mark.parametrize("both_ways", [False, True], ids=["continues", "fills in"])
def test_operations_are_those_of_what_learns(method: str, both_ways: bool) -> None:
    """Against torch's count of what a step of a tuned model really computes; 6·P would be up to twice that."""
    sequence, width, layers = 32, 64, 6
    shape: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 192, "num_hidden_layers": layers, "num_attention_heads": 4,
        "vocab_size": 96, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    model: Any = (
        BertForMaskedLM(BertConfig(**shape))
        if both_ways
        else LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, tie_word_embeddings=False))
    )
    task = "masked_language_model" if both_ways else "language_model"
    config = Config.model_validate({"task": task, "tune": method, "model": {"path": "x"}})
    model = tune(model, config).model
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(sequence)[None]).logits.sum().backward()
    counted = counter.get_total_flops() / sequence
    if not both_ways:  # causal attention needs half of what eager attention computes
        counted -= width * sequence * (2 * layers + 4 * (2 if method == "last" else layers))
    said = flops_per_masked_token(model, sequence, 1.0) if both_ways else flops_per_token(model, sequence)
    assert said == pytest.approx(counted, rel=0.05)
    assert (said < 5 * count_parameters(model).matmul) == (method != "full")


def test_operations_of_windows_experts_and_strangers() -> None:
    base = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    window = {"model_type": "mistral", "sliding_window": 8, "num_key_value_heads": 2} | base
    narrow, _ = build_model(ModelConfig(config=window), vocabulary=64, sequence=32, seed=0, end_token=0)
    assert flops_per_token(narrow, 32) == 6 * count_parameters(narrow).matmul + 6 * 2 * 32 * 8
    mixture = {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 2,
    } | base
    sparse, _ = build_model(ModelConfig(config=mixture), vocabulary=64, sequence=32, seed=0, end_token=0)
    dense_part = sum(p.numel() for name, p in sparse.named_parameters() if "experts" not in name) - 64 * 32
    expert = 3 * 32 * 48
    assert count_parameters(sparse).matmul == dense_part + 2 * expert
    assert flops_per_token(torch.nn.Linear(4, 5), 1) == 6 * 25
