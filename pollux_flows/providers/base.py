"""Calls and answers: the data of one request, and helpers that read answers of any shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from pollux_flows.config import Config
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.options import Options
from pollux_flows.plain import replace_surrogates
from pollux_flows.pricing import IMPOSSIBLE_TOKENS
from pollux_flows.providers.material import Material
from pollux_flows.result import UNREADABLE, Answer
from pollux_flows.turn import Turn

T = TypeVar("T")

LARGEST_ANSWER: Final = 64 << 20
"""The most bytes that one answer may have, once it is decompressed."""
SMALL_ANSWER: Final = 1 << 20
"""The most bytes of an answer that is parsed on the event loop, which takes milliseconds."""
MOST_VALUES: Final = 6_000_000
"""The most values that the JSON of one answer may have beyond its first megabyte; a list or an object counts as eight,
as it takes so much longer to parse. Parsing them takes about half a second, in C code that blocks all threads. An
answer with 20 log probabilities for each of 14,000 tokens has as many."""
# The values that an answer may hold besides its text. More are not useful, and slow down everything that stores them.
_MOST_VALUES_BESIDE: Final = 100_000
_MOST_CALLS: Final = 10_000
_MOST_UNREADABLE: Final = 1_000
_EXCERPT: Final = 8


@dataclass(frozen=True)
class PriorTurn:
    """A prior turn of the conversation; a user's turn with its materials and prompt, as in a Call."""

    turn: Turn
    materials: tuple[Material, ...] = ()
    prompt: str | None = None


_USER: Final = Turn(role="user")


@dataclass(frozen=True)
class Call:
    """The data of one request to a provider."""

    model: str
    materials: tuple[Material, ...]
    prompt: str | None
    options: Options
    implicit_caching: bool = False
    is_one_of_many: bool = False
    """True if other calls share the prefix and differ in the prompt: the cached part then ends before the prompt."""
    prefix_key: str | None = None
    """The identity of the shared prefix, by which a provider finds its cache."""
    history: tuple[PriorTurn, ...] = ()
    response_id: str | None = None
    """The id under which the provider stores the conversation, up to the assistant's last turn."""

    @property
    def turns(self) -> tuple[PriorTurn, ...]:
        """Return the prior turns and this call's own, if any: a history may end with a prompt or tool results."""
        if self.history and not self.materials and self.prompt is None:
            return self.history
        return (*self.history, PriorTurn(_USER, self.materials, self.prompt))

    @property
    def all_materials(self) -> tuple[Material, ...]:
        """Return the materials of this turn and of all prior ones."""
        return (*(material for turn in self.history for material in turn.materials), *self.materials)

    @property
    def tools_called(self) -> list[str]:
        """Return the names of the tools called in prior turns, each once."""
        return list(dict.fromkeys(call.name for prior in self.history for call in prior.turn.tool_calls))


class GenerateModule(Protocol):
    """The interface of `generate.py`: `request` builds a request, `generate` sends it and reads the answer.

    `connect` opens a connection, which is shared by the calls of a run and closed with it.
    """

    def connect(self, config: Config, /) -> AbstractAsyncContextManager[Any]: ...

    def request(self, call: Call, /) -> dict[str, Any]: ...

    async def generate(self, client: Any, call: Call, /) -> Answer: ...


class ModelsModule(Protocol):
    """The interface of `models.py`: the check of a request that needs the provider's catalogue of models."""

    async def check(self, client: Any, call: Call, /) -> None: ...


# Options that change the form of the response, or the server that sends it, so that `read_answer` could not read it:
# the answer would be paid for and lost.
_OTHER_FORMS: Final = ("stream", "background", "n", "candidate_count", "http_options")


def merge_raw_options(request: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request with the caller's raw provider options. Raises if one is already set or changes the format."""
    for name in _OTHER_FORMS:
        if raw.get(name) and (raw[name] is True or raw[name] != 1):
            raise ConfigurationError(
                f"provider_options sets {name!r}, but this package reads exactly one complete answer per call.",
                hint=f"Leave {name!r} out.",
            )
    if doubled := sorted(set(request) & set(raw)):
        raise ConfigurationError(
            f"provider_options sets {doubled[0]!r}, which is set already.",
            hint="Use the field of Options for it, or leave that field out.",
        )
    return {**request, **raw}


# The errors of reading a value of an unexpected shape; a PolluxError where a document refuses it.
_SHAPE_ERRORS: Final = (LookupError, TypeError, AttributeError, ValueError, RecursionError, PolluxError)


class ItemReader:
    """Reads an answer item by item and sets unreadable items aside, so that they do not cost the rest."""

    def __init__(self) -> None:
        self._unreadable: list[Any] = []

    def read_each(self, items: Any, read: Callable[[int, Any], T]) -> list[T]:
        """Return the results of `read(index, item)` for the items that it can read; None counts as no items."""
        if items is not None and not isinstance(items, list):
            self.set_aside(items)
        found = []
        for index, item in enumerate(items if isinstance(items, list) else ()):
            try:
                found.append(read(index, item))
            except _SHAPE_ERRORS:
                self.set_aside(item)
                if len(self._unreadable) > _MOST_UNREADABLE:  # raising a million errors takes time
                    self.set_aside(items[index + 1 :])
                    break
        return found

    def set_aside(self, item: Any) -> None:
        self._unreadable.append(item)

    def finish(self, answer: Answer, response: Any) -> Answer:
        """Return the answer, with unreadable items in `artifacts`. Raises an UpstreamError if nothing else is left."""
        if not self._unreadable:
            return answer
        if not (answer.text.strip() or answer.tool_calls or answer.finish_reason == "blocked"):
            raise UpstreamError.found_in(response)
        return answer.model_copy(update={"artifacts": {**answer.artifacts, UNREADABLE: self._unreadable}})


def reader(read: Callable[[Any], Answer]) -> Callable[[Any], Answer]:
    """Decorate `read` to raise an UpstreamError for a response that does not have the shape of its protocol."""

    @wraps(read)
    def guarded(response: Any) -> Answer:
        try:
            return read(response)
        except UpstreamError as error:
            error.body = replace_surrogates(error.body)
            raise
        except _SHAPE_ERRORS:
            raise UpstreamError.found_in(replace_surrogates(response)) from None

    return guarded


def count_values(body: bytes) -> int:
    """Estimate the number of values in JSON, as MOST_VALUES counts them: by commas and brackets, also within texts."""
    return body.count(b",") + 8 * (body.count(b"[") + body.count(b"{"))


async def read_body(read: Callable[[Any], Answer], body: bytes | str) -> Answer:
    """Parse the answer in a response body; a large one on a thread, so that it does not block other calls."""
    if len(body) <= SMALL_ANSWER:
        return read(json.loads(body))
    return await asyncio.to_thread(_read_large, read, body)


def _read_large(read: Callable[[Any], Answer], body: bytes | str) -> Answer:
    try:
        answer = read(json.loads(body))
    except UpstreamError as error:
        error.body = _excerpt(error.body)
        raise
    beside = [answer.tool_calls, answer.artifacts, answer.provider_state]
    if not _has_more_values(beside, _MOST_VALUES_BESIDE):
        return answer
    left_out = f"(left out: there are more than {_MOST_VALUES_BESIDE:,} values beside the text)"
    calls = answer.tool_calls[:_MOST_CALLS]
    return answer.model_copy(
        update={"tool_calls": calls, "artifacts": {UNREADABLE: [left_out]}, "provider_state": None}
    )


def _excerpt(body: Any, depth: int = 0) -> Any:
    """Return an excerpt of a body for an error: its first items, down to a few levels, and the first part of a text."""
    if isinstance(body, str):
        return body[:SMALL_ANSWER]
    if not isinstance(body, dict | list):
        return body
    if depth == _EXCERPT:
        return "…"
    if isinstance(body, dict):
        return {name[:SMALL_ANSWER]: _excerpt(item, depth + 1) for name, item in islice(body.items(), _EXCERPT)}
    return [_excerpt(item, depth + 1) for item in body[:_EXCERPT]]


def _has_more_values(value: Any, most: int) -> bool:
    """Return whether lists and objects hold more than `most` values, at any depth; counting stops there."""
    ahead, count = [value], 0
    while ahead and count <= most:
        each = ahead.pop()
        if isinstance(each, dict | list):
            count += len(each)
            ahead.extend(each.values() if isinstance(each, dict) else each)
    return count > most


def call_id(value: Any, index: int) -> Any:
    """Return the id of a tool call or, if the provider sent none, `call_` and its index in the answer.

    This holds for every provider: the call was paid for, and its result can be sent back under that id.
    """
    return value or f"call_{index}"


def as_text(value: Any) -> str | None:
    """Return the value if it is a string, otherwise None, so that a malformed text does not cost the whole answer."""
    return value if isinstance(value, str) else None


def text_in(item: dict[str, Any], name: str) -> str:
    """Return the string under that name. Raises if it is missing or not a string."""
    if not isinstance(text := item[name], str):
        raise TypeError(f"{name} is not text")
    return text


def as_object(value: Any) -> dict[str, Any]:
    """Return the value if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def as_count(value: Any) -> int:
    """Return the value if it is a positive integer, otherwise 0."""
    return value if type(value) is int and value > 0 else 0


def counts(**found: Any) -> dict[str, int]:
    """Return the token counts by name, without implausible values, which count as unknown."""
    return {name: count for name, count in found.items() if type(count) is int and 0 <= count <= IMPOSSIBLE_TOKENS}


class UpstreamError(Exception):
    """A response that is not an answer.

    `status` is its HTTP status or, for an error sent under HTTP 200, the one that it should have had; None if that
    is unknown.
    """

    def __init__(self, status: int | None, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(body)[:200])
        self.status = status
        self.body = body
        self.headers = headers or {}

    @property
    def is_billed(self) -> bool:
        """Return whether the error reports output tokens, as an error of a model that failed half-way may."""
        usage = as_object(as_object(self.body).get("usage"))
        return any(as_count(usage.get(name)) for name in ("output_tokens", "completion_tokens"))

    @classmethod
    def found_in(cls, response: Any) -> UpstreamError:
        """Return the error for a response that does not have the shape of an answer."""
        if isinstance(response, dict) and (error := response.get("error")):
            code = error.get("code") if isinstance(error, dict) else None
            known = isinstance(code, int) and 400 <= code <= 599  # noqa: PLR2004 (HTTP's own range)
            return cls(code if known else 500, response)
        return cls(None, response)
