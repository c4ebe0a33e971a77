"""Dialogue and instruction tuning: a causal language model learns what the assistant says, and nothing else of a talk.

Examples are talks: OpenAI's `messages`, or a `prompt` and a `response`.
"""

from __future__ import annotations

from typing import Any

from tutti.core import DataError
from tutti.tasks.talk import Message
from tutti.tasks.task import Example, Record
from tutti.tasks.writing import Writing

ROLES = ("system", "user", "assistant")


class Chat(Writing):
    """Examples `{messages: [{role, content}, …]}`."""

    kind = "chat"
    asked = "prompt"
    template = (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    )

    def example(self, record: Record, *, labelled: bool = True) -> Example:
        if not self.has(record, "messages") and self.has(record, "prompt"):
            said = [{"role": "user", "content": self.text_field(record, "prompt")}]
            if labelled or self.has(record, "response"):
                said.append({"role": "assistant", "content": self.text_field(record, "response")})
            return {"messages": said}
        messages = self.field(record, "messages")
        if not isinstance(messages, list) or not messages:
            raise DataError(
                f"{record.origin}: messages is no list of messages",
                'give messages: [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
            )
        found = [_message(record, message) for message in messages]
        if labelled and not any(message["role"] == "assistant" for message in found):
            raise DataError(
                f"{record.origin}: the assistant says nothing", "there must be something to learn in it"
            )
        return {"messages": found}

    def texts(self, example: Example) -> list[str]:
        return [message["content"] for message in example["messages"]]

    def talk(self, example: Example) -> list[Message]:
        return list(example["messages"])

    def given(self, example: Example) -> list[Message]:
        messages = self.talk(example)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return messages


def _message(record: Record, message: Any) -> Message:
    role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
    if role not in ROLES:
        raise DataError(f"{record.origin}: a message's role is {role!r}", f"roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(
            f"{record.origin}: a message's content is {type(content).__name__}, not text", "mend the record"
        )
    return {"role": role, "content": content}
