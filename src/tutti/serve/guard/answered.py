"""The answer on its way out: counted, redacted, and broken off where it is harmful; whole, or event by event."""

from __future__ import annotations

import json
from typing import Any

from tutti.serve.guard.exchange import Exchange
from tutti.serve.guard.texts import Flow, Way, whole

#: What the service itself says, and vectors.
_OURS = frozenset(
    {
        "id",
        "object",
        "model",
        "finish_reason",
        "role",
        "type",
        "code",
        "param",
        "label",
        "owned_by",
        "embedding",
    }
)


class Answered:
    """Of one request. `usage`: whether the client wants to be told with a stream; `texts`: how many there will be."""

    def __init__(self, way: Way, exchange: Exchange, *, usage: bool, texts: int) -> None:
        self._way, self._exchange, self._usage, self._texts = way, exchange, usage, texts
        self._flows: dict[int, Flow] = {}
        self._over = set[int]()
        self._rest = b""

    @property
    def over(self) -> bool:
        """Whether nothing more that comes can be told: every text was broken off."""
        return bool(self._exchange.harm) and len(self._over) >= self._texts

    def whole(self, body: bytes) -> bytes:
        """The body of an answer."""
        try:
            answer = json.loads(body)
        except ValueError:
            text = whole(Way(self._way.redactor), body.decode("utf-8", "replace"), self._exchange.redactions)[
                0
            ]
            return body if self._way.redactor is None else text.encode()
        if isinstance(answer, dict):
            self._count(answer.get("usage"))
        if self._way.open:
            return body
        return json.dumps(self._changed(answer), ensure_ascii=False).encode("utf-8", "surrogatepass")

    def part(self, body: bytes) -> bytes:
        """What may leave of a stream now that `body` has come."""
        *events, self._rest = (self._rest + body).split(b"\n\n")
        return b"".join(self._event(event) for event in events if event)

    def _event(self, event: bytes) -> bytes:
        if event == b"data: [DONE]":
            return event + b"\n\n"
        chunk = json.loads(event.removeprefix(b"data: "))
        if not isinstance(chunk.get("choices"), list):  # an error
            return _line(self._changed(chunk))
        self._count(chunk.get("usage"))
        if not self._usage:
            chunk.pop("usage", None)
        if not chunk["choices"]:
            return _line(chunk) if self._usage else b""
        self._exchange.new_tokens += len(chunk["choices"]) if not self._exchange.prompt_tokens else 0
        if self._way.open:
            return _line(chunk)
        told = [one for choice in chunk["choices"] for one in self._choice(choice)]
        return b"".join(_line(chunk | {"choices": [one]}) for one in told)

    def _choice(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        """What may be told of a part of an answer."""
        index = choice["index"]
        if index in self._over:
            return []
        flow = self._flows.setdefault(index, Flow(self._way, self._exchange.redactions))
        delta = choice.get("delta")
        said = choice.get("text") if delta is None else delta.get("content")
        text = flow.push(said or "")
        reason = choice.get("finish_reason")
        if reason is not None and flow.harm is None:
            text += flow.end()
        if flow.harm is not None:
            self._exchange.harm, reason = flow.harm, "content_filter"
        if reason is not None:
            self._over.add(index)
        if not text and reason is None and not (delta or {}).get("role"):
            return []
        if choice.get("logprobs") is not None:
            choice = choice | {"logprobs": None}
        if delta is None:
            return [choice | {"text": text, "finish_reason": reason}]
        new = {name: one for name, one in delta.items() if name != "content"}
        if text or "role" in new:
            new["content"] = text
        return [choice | {"delta": new, "finish_reason": reason}]

    def _changed(self, value: Any) -> Any:
        """`value` with every text in it redacted; what a model wrote is judged as well."""
        if isinstance(value, str):
            return whole(Way(self._way.redactor), value, self._exchange.redactions)[0]
        if isinstance(value, list):
            return [self._changed(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "finish_reason" in value:
            return self._finished(value)
        return {name: one if name in _OURS else self._changed(one) for name, one in value.items()}

    def _finished(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A whole answer of a model that writes."""
        message = choice.get("message")
        said = choice.get("text") if message is None else message.get("content")
        text, harm = whole(self._way, said or "", self._exchange.redactions)
        new = choice | {"logprobs": None}
        if harm is not None:
            self._exchange.harm, new["finish_reason"] = harm, "content_filter"
        return new | ({"text": text} if message is None else {"message": message | {"content": text}})

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._exchange.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self._exchange.new_tokens = int(usage.get("completion_tokens") or 0)


def _line(event: Any) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "surrogatepass")
