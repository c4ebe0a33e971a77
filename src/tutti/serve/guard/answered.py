"""The answer on its way out: counted, redacted, and broken off where it is harmful; whole, or event by event."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tutti.serve.guard.exchange import Exchange
from tutti.serve.guard.texts import Flow, Way, whole
from tutti.serve.refusal import Refusal

#: Where a text stands in a part of an answer: its name, and the number of the tool that is called.
Path = tuple[str] | tuple[str, int]

#: Of an answer that was written, what is not the model's; all else that is no text of its is left out.
_ABOUT = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier")
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
        #: By choice, the texts in it: what is said, and whatever else a model that thinks or calls tools writes.
        self._flows: dict[int, dict[Path, Flow]] = {}
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
            if self._way.open:
                return body
            text, harm = whole(self._way, body.decode(), self._exchange.redactions)
            if harm is not None:
                self._exchange.harm = harm
                raise Refusal(502, f"the answer looks like {harm}", code="content_filter") from None
            return text.encode()
        if isinstance(answer, dict):
            self._count(answer.get("usage"))
        if self._way.open:
            return body
        return json.dumps(self._changed(answer), ensure_ascii=False).encode("utf-8", "surrogatepass")

    def part(self, body: bytes, *, last: bool = False) -> bytes:
        """What may leave of a stream now that `body` has come; `last`: and nothing more will."""
        held = self._rest + body
        # A line may end in two characters, of which the second one has not come yet.
        held, open_end = (held[:-1], b"\r") if held.endswith(b"\r") and not last else (held, b"")
        *events, rest = held.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
        if last:
            events, rest = [*events, rest], b""
        self._rest = rest + open_end
        return b"".join(self._event(event.strip(b"\n")) for event in events)

    def _event(self, event: bytes) -> bytes:
        """As `text/event-stream` is defined: comments keep a connection open, and only data is passed on."""
        lines = event.split(b"\n")
        data = [line.removeprefix(b"data:").removeprefix(b" ") for line in lines if line.startswith(b"data:")]
        if not data:
            return b":\n\n" if any(line.startswith(b":") for line in lines) else b""
        if data == [b"[DONE]"]:
            return b"data: [DONE]\n\n"
        chunk = json.loads(b"\n".join(data))
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), list):  # an error
            return _line(chunk if self._way.open else self._changed(chunk))
        self._count(chunk.get("usage"))
        if not self._usage:
            chunk.pop("usage", None)
        if not chunk["choices"]:
            return _line(chunk) if self._usage else b""
        self._exchange.new_tokens += len(chunk["choices"]) if not self._exchange.prompt_tokens else 0
        if self._way.open:
            return _line(chunk)
        told = [one for choice in chunk["choices"] for one in self._choice(choice)]
        about = {name: chunk[name] for name in _ABOUT if name in chunk}
        return b"".join(_line(about | {"choices": [one]}) for one in told)

    def _choice(self, choice: dict[str, Any]) -> list[dict[str, Any]]:
        """What may be told of a part of an answer."""
        index = choice["index"]
        if index in self._over:
            return []
        delta = choice.get("delta")
        said = {"text": choice.get("text")} if delta is None else delta
        flows, reason = self._flows.setdefault(index, {}), choice.get("finish_reason")
        pieces: dict[Path, str] = {}
        for path, text in _texts(said):
            pieces[path] = flows.setdefault(path, Flow(self._way, self._exchange.redactions)).push(text)
        if reason is not None and not _harm(flows):
            for path, flow in flows.items():
                pieces[path] = pieces.get(path, "") + flow.end()
        if (harm := _harm(flows)) is not None:
            self._exchange.harm, reason = harm, "content_filter"
        if reason is not None:
            self._over.add(index)
        about = {"index": index, "finish_reason": reason} | (
            {"logprobs": None} if "logprobs" in choice else {}
        )
        if delta is None:
            text = pieces.get(("text",), "")
            return [about | {"text": text}] if text or reason is not None else []
        new = self._delta(delta, pieces)
        return [about | {"delta": new}] if new or reason is not None else []

    def _delta(self, delta: dict[str, Any], pieces: dict[Path, str]) -> dict[str, Any]:
        """`delta` with `pieces` for its texts."""
        new: dict[str, Any] = {"role": delta["role"]} if delta.get("role") else {}
        new |= {path[0]: text for path, text in pieces.items() if len(path) == 1 and text}
        if new.get("role") and isinstance(delta.get("content"), str):
            new.setdefault("content", "")
        calls: dict[int, dict[str, Any]] = {
            place: self._call(call) for place, call in _calls(delta) if set(call) - {"index", "function"}
        }
        for path, text in pieces.items():
            if len(path) == 2 and text:
                calls.setdefault(path[1], {"function": {}})["function"]["arguments"] = text
        if calls:
            new["tool_calls"] = [{"index": place} | call for place, call in sorted(calls.items())]
        return new

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call of a tool but for its arguments."""
        name = (call.get("function") or {}).get("name")
        function = {} if name is None else {"name": self._changed(name), "arguments": ""}
        return {key: call[key] for key in ("id", "type") if key in call} | {"function": function}

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
        if isinstance(value.get("choices"), list):
            value = {name: value[name] for name in (*_ABOUT, "choices") if name in value}
        if value.get("object") == "answer":
            return self._taken_from_documents(value)
        return {name: one if name in _OURS else self._changed(one) for name, one in value.items()}

    def _taken_from_documents(self, value: dict[str, Any]) -> dict[str, Any]:
        """An answer with what it was taken from; a model may have written it."""
        rest = {name: one if name in _OURS else self._changed(one) for name, one in value.items()}
        if value.get("answer") is None:
            return rest
        text, harm = whole(self._way, value["answer"], self._exchange.redactions)
        if harm is not None:
            self._exchange.harm = harm
            rest["finish_reason"] = "content_filter"
        return rest | {"answer": text}

    def _finished(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A whole answer of a model that writes."""
        message, harms = choice.get("message"), list[str]()

        def look(text: str) -> str:
            text, harm = whole(self._way, text, self._exchange.redactions)
            harms.extend([harm] if harm is not None else [])
            return text

        said = {"text": choice.get("text")} if message is None else message
        new: dict[str, Any] = {name: look(one) for name, one in said.items() if isinstance(one, str)}
        if message is not None:
            new["role"] = message.get("role")
            new |= {name: None for name in ("content", "refusal") if message.get(name, "") is None}
            calls = [
                self._call(call)
                | {
                    "function": {
                        "name": look(name),
                        "arguments": look(call["function"].get("arguments") or ""),
                    }
                }
                for _, call in _calls(message)
                if (name := (call.get("function") or {}).get("name")) is not None
            ]
            new |= {"tool_calls": calls} if calls else {}
        about = {"index": choice.get("index"), "finish_reason": choice["finish_reason"], "logprobs": None}
        if harms:
            self._exchange.harm, about["finish_reason"] = harms[0], "content_filter"
        return about | (new if message is None else {"message": new})

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            self._exchange.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self._exchange.new_tokens = int(usage.get("completion_tokens") or 0)


def _texts(said: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every text that a model wrote in `said`, and where: what it says, or thinks, and what it gives tools."""
    for name, value in said.items():
        if isinstance(value, str) and name != "role":
            yield (name,), value
    for place, call in _calls(said):
        arguments = (call.get("function") or {}).get("arguments")
        if isinstance(arguments, str):
            yield ("tool_calls", place), arguments


def _calls(said: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The calls of tools in `said`, by their number."""
    for place, call in enumerate(said.get("tool_calls") or ()):
        if isinstance(call, dict):
            yield int(call.get("index", place)), call


def _harm(flows: dict[Path, Flow]) -> str | None:
    return next((flow.harm for flow in flows.values() if flow.harm is not None), None)


def _line(event: Any) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "surrogatepass")
