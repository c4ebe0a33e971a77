"""Talks: what is learned of them, and what people cannot smuggle in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from encoders import write_jsonl
from tutti import api
from tutti.config import load_config
from tutti.config.data import DataConfig
from tutti.config.task import TaskConfig
from tutti.core import DataError
from tutti.data.labelled import ExampleSource, PreparedExamples, Reader, encoder_in, prepare_examples
from tutti.models import generate
from tutti.tasks import Record, make_text_task
from tutti.tasks.talk import begin_turn, begin_turns, read_talk
from tutti.train.language import _blueprint

TALKS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"What is {n} plus {n}? <|endoftext|>"},
            {"role": "assistant", "content": f"It is {2 * n}."},
            {"role": "user", "content": "Thanks."},
            {"role": "assistant", "content": "Any time."},
        ]
    }
    for n in range(40)
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedExamples:
    place = tmp_path_factory.mktemp("chat")
    source = write_jsonl(place / "talks.jsonl", TALKS)
    config = DataConfig(
        source=str(source), tokenizer="characters", cache=str(place / "cache"), validation=0.0
    )
    task = make_text_task(TaskConfig(kind="chat"))
    return prepare_examples(config, task, Reader(512, types=False), lambda _: None)


def test_what_the_assistant_says_is_learned_and_where_it_stops(prepared: PreparedExamples) -> None:
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_directory)
    table = prepared.parts["train"].table
    learned = []
    for number in range(len(table)):
        row = table[number]
        assert len(row["input_ids"]) == len(row["targets"]) == len(row["places"]) <= 512
        learned += [target for target in row["targets"] if target >= 0]
    said = tokenizer.decode(learned)
    assert said == "".join(f"It is {2 * n}.<|endoftext|>Any time.<|endoftext|>" for n in range(40))


def test_a_talk_is_what_the_template_makes_of_it(prepared: PreparedExamples) -> None:
    """transformers' own tokens of the whole talk, but for special tokens that a user typed: those are text."""
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_directory)
    row = prepared.parts["train"].table[0]
    places = [*row["places"], 0]
    first = row["input_ids"][: next(at for at in range(1, len(places)) if places[at] == 0)]
    text = tokenizer.apply_chat_template(TALKS[0]["messages"], tokenize=False)
    assert (
        tokenizer.decode(first) in text and len(tokenizer.decode(first)) == len(text) - 1
    )  # but for the last, "\n"
    end = tokenizer.eos_token_id
    assert first.count(end) == 5  # one for each message; the one that was typed is none


def test_talks_in_a_window_do_not_see_each_other(prepared: PreparedExamples) -> None:
    task = make_text_task(TaskConfig(kind="chat"))
    task.fixed = 512
    batch = ExampleSource(prepared, "train", task).load(0, [0])
    assert batch["input_ids"].shape == (1, 512)
    starts = (batch["position_ids"][0] == 0).nonzero().flatten()
    assert len(starts) >= 2
    for start, stop in zip(starts, [*starts[1:], torch.tensor(512)], strict=True):
        assert batch["position_ids"][0, start:stop].tolist() == list(range(int(stop - start)))
    assert int((ExampleSource(prepared, "train", task).empty()["labels"] >= 0).sum()) == 0


#: What is around messages is text that runs into them, unlike most people's marks.
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
PLAIN += "{% if add_generation_prompt %}assistant: {% endif %}"


def test_a_turn_begins_as_it_did_where_it_was_learned(prepared: PreparedExamples, tmp_path: Path) -> None:
    """Also where frames and contents would share tokens if they were read in one piece."""
    corpus = ["user: What is it? assistant: It is this. assistant: So. user: S"] * 50
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    made.chat_template = PLAIN
    made.save_pretrained(tmp_path)
    encoder = encoder_in(tmp_path, make_text_task(TaskConfig(kind="chat")), Reader(64, types=False))
    asked = [{"role": "user", "content": "What is <|endoftext|>?"}]
    begun = begin_turn(encoder, asked)
    ids, targets = read_talk(encoder, [*asked, {"role": "assistant", "content": "It is this."}])
    assert ids[: len(begun)] == begun and targets[len(begun) - 1] >= 0 > targets[len(begun) - 2]
    jointly = made.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert begun != jointly and made.decode(begun) == made.decode(jointly)
    assert begun.count(made.eos_token_id) == 1  # what somebody types is text
    assert begin_turns(encoder, [asked[0]["content"]]) == [begun]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": []}, "no list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role is 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is int, not text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the assistant says nothing"),
        ({"prompt": "x"}, "no field 'response'"),
        ({"text": "x"}, "no field 'messages'"),
    ],
)
def test_a_talk_that_cannot_be_is_refused_by_its_place(record: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        make_text_task(TaskConfig(kind="chat")).example(Record("f:1", record))
    assert "f:1" in str(caught.value)


def test_a_talk_that_the_template_refuses_is_named_by_its_place(
    prepared: PreparedExamples, tmp_path: Path
) -> None:
    given = shutil.copytree(prepared.tokenizer_directory, tmp_path / "given")
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    (given / "chat_template.jinja").write_text(refusing + PLAIN)
    source = write_jsonl(
        tmp_path / "talks.jsonl", [{"prompt": f"{n}?", "response": "yes"} for n in range(3)] + TALKS
    )
    config = DataConfig(
        source=str(source), tokenizer=str(given), cache=str(tmp_path / "cache"), validation=0.0
    )
    task = make_text_task(TaskConfig(kind="chat"))
    with pytest.raises(DataError, match="System role not supported") as caught:
        prepare_examples(config, task, Reader(512, types=False), lambda _: None)
    assert (
        caught.value.problem.startswith(f"{source}:4: ") and "system, user, assistant" in caught.value.problem
    )


def test_a_model_learns_to_answer(tmp_path: Path) -> None:
    """Two kinds of questions, two answers, prompt and response; the export answers in plain transformers as well."""
    records = [
        {"prompt": f"{'Red' if n % 2 else 'Green'} {n}?", "response": "stop" if n % 2 else "go"}
        for n in range(80)
    ]
    source = write_jsonl(tmp_path / "talks.jsonl", records)
    words = [
        *("task=chat", f"data.source={source}", "data.tokenizer=characters", "data.sequence=64", "model=60K"),
        *(
            "train.steps=120",
            "train.batch=16",
            "train.learning_rate=5e-3",
            "train.precision=fp32",
            "replicas=2",
        ),
        *(
            f"runs={tmp_path / 'runs'}",
            f"data.cache={tmp_path / 'cache'}",
            "name=talk",
            "data.validation=0.1",
        ),
    ]
    report = api.train(load_config(None, words), console=False)
    assert report["state"] == "finished" and report["validation_loss"] < 0.3
    run = tmp_path / "runs" / "talk"
    assert api.generate(run, ["Red 7?", "Green 8?"], new_tokens=12, temperature=0.0) == ["stop", "go"]
    assert api.evaluate(run)["loss"] == pytest.approx(report["validation_loss"], rel=1e-3)
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Green 8?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    said = tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    assert said == "go<|endoftext|>"
    assert "tutti generate" in json.dumps((run / "report.md").read_text())


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_turn_may_end_with_another_token_than_texts_do(
    prepared: PreparedExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a base model of Qwen's: texts end with <|endoftext|>, turns with <|im_end|>."""
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    base = tmp_path / "base"
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    model.generation_config.bos_token_id = 3
    tokenizer.save_pretrained(base)
    model.save_pretrained(base)
    words = ["task=chat", f"data.source={write_jsonl(tmp_path / 'talks.jsonl', TALKS)}", f"model={base}"]
    words += [f"data.tokenizer={base}"]
    words += [f"data.cache={tmp_path / 'cache'}", "data.sequence=64", "replicas=1"]
    config = load_config(None, words)
    task = make_text_task(config.task)
    chat = prepare_examples(config.data, task, Reader(64, types=False), lambda _: None)
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat.stops == (turn,) and chat.end_token == tokenizer.eos_token_id != turn
    learns: Any = _blueprint(config, chat).build()
    assert learns.generation_config.eos_token_id == [chat.end_token, *sorted((5, turn))]
    assert (learns.config.eos_token_id, learns.generation_config.bos_token_id) == (chat.end_token, 3)
    said = tokenizer("It is 4.")["input_ids"]

    def writes(ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        assert turn in settings["eos_token_id"]
        new = torch.tensor([[*said, turn, *said]]).expand(len(ids), -1)
        return torch.cat([ids, new], 1)

    monkeypatch.setattr(learns, "generate", writes)
    assert generate(learns, tokenizer, ["a", "bc"], 30) == ["It is 4."] * 2


def test_a_tokenizer_without_an_end_is_refused(prepared: PreparedExamples, tmp_path: Path) -> None:
    directory = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(prepared.tokenizer_directory).save_pretrained(directory)
    (directory / "chat_template.jinja").unlink()
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["eos_token"]
    file.write_text(json.dumps(settings))
    source = write_jsonl(tmp_path / "talks.jsonl", TALKS)
    config = DataConfig(source=str(source), tokenizer=str(directory), cache=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="eos_token"):
        prepare_examples(
            config, make_text_task(TaskConfig(kind="chat")), Reader(512, types=False), lambda _: None
        )
