"""What every provider is: a folder of modules with these functions, and nothing to inherit from.

`client.py` opens a connection, `generate.py` makes one call, `turns.py` says what was said before it. What a provider
cannot do has no file.
"""

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
from pollux_flows.plain import mended
from pollux_flows.pricing import NO_CALL_TAKES
from pollux_flows.providers.material import Material
from pollux_flows.result import UNREADABLE, Answer
from pollux_flows.turn import Turn

T = TypeVar("T")

LARGEST_ANSWER: Final = 64 << 20
"""The most bytes that one answer may have, once it is unpacked."""
SMALL_ANSWER: Final = 1 << 20
"""Up to so many bytes, an answer is read on the event loop, in milliseconds."""
MOST_VALUES: Final = 6_000_000
"""The most values that the JSON of one answer may have beyond its first megabyte; a list or an object counts as eight,
since it takes so much longer to read. To read them takes about half a second, in C code that holds up all threads. An
answer with 20 log probabilities for each of 14,000 tokens has as many."""
# What an answer may hold beside its text. Values beyond that help no reader, and take their time wherever it is stored.
_MOST_VALUES_BESIDE: Final = 100_000
_MOST_CALLS: Final = 10_000
_MOST_UNREADABLE: Final = 1_000
_EXCERPT: Final = 8


@dataclass(frozen=True)
class Said:
    """A turn before this one. Of a user's turn, what was shown and what was asked, as in a Call."""

    turn: Turn
    materials: tuple[Material, ...] = ()
    prompt: str | None = None


_USER: Final = Turn(role="user")


@dataclass(frozen=True)
class Call:
    """All that one request to a provider is made from."""

    model: str
    materials: tuple[Material, ...]
    prompt: str | None
    options: Options
    implicit_caching: bool = False
    is_one_of_many: bool = False
    """Whether other calls begin alike and end with prompts of their own: what is cached ends before the prompt."""
    prefix_key: str | None = None
    """The identity of what those calls begin with, by which a provider finds its cache."""
    said: tuple[Said, ...] = ()
    response_id: str | None = None
    """Under which the provider keeps what was said, up to the assistant's last turn."""

    @property
    def turns(self) -> tuple[Said, ...]:
        """All turns; the last is this call's own, unless what was said ends with tool results or a question."""
        if self.said and not self.materials and self.prompt is None:
            return self.said
        return (*self.said, Said(_USER, self.materials, self.prompt))

    @property
    def everything(self) -> tuple[Material, ...]:
        """All that the model is shown, in this turn and those before."""
        return (*(material for said in self.said for material in said.materials), *self.materials)

    @property
    def tools_called(self) -> list[str]:
        """The names of the tools that were called before."""
        return list(dict.fromkeys(call.name for said in self.said for call in said.turn.tool_calls))


class ClientModule(Protocol):
    """`client.py`: a connection that is opened once a run, shared by its calls, and closed with it."""

    def connect(self, config: Config, /) -> AbstractAsyncContextManager[Any]: ...


class GenerateModule(Protocol):
    """`generate.py`: `request` says what would be sent, `generate` sends it and reads the answer."""

    def request(self, call: Call, /) -> dict[str, Any]: ...

    async def generate(self, client: Any, call: Call, /) -> Answer: ...


# What would make the provider answer in a form that `read_answer` does not read, or somebody else answer altogether:
# paid for, and lost.
_OTHER_FORMS: Final = ("stream", "background", "n", "candidate_count", "http_options")


def merged(request: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The request with the caller's raw provider options; saying a thing twice is refused."""
    for name in _OTHER_FORMS:
        if raw.get(name) and (raw[name] is True or raw[name] != 1):
            raise ConfigurationError(
                f"provider_options sets {name!r}, and one whole answer a call is what this package reads.",
                hint=f"Leave {name!r} out.",
            )
    if doubled := sorted(set(request) & set(raw)):
        raise ConfigurationError(
            f"provider_options sets {doubled[0]!r}, which is set already.",
            hint="Use the field of Options for it, or leave that field out.",
        )
    return {**request, **raw}


# What reading something of another shape raises; a PolluxError where a document refuses it.
_STUMBLES: Final = (LookupError, TypeError, AttributeError, ValueError, RecursionError, PolluxError)


class ItemReader:
    """Reads an answer item by item. What cannot be read is set aside, so that it costs no more than itself."""

    def __init__(self) -> None:
        self._unreadable: list[Any] = []

    def read_each(self, items: Any, read: Callable[[int, Any], T]) -> list[T]:
        """What `read` makes of each item that it can read, from its number and the item; None has no items."""
        if items is not None and not isinstance(items, list):
            self.set_aside(items)
        found = []
        for index, item in enumerate(items if isinstance(items, list) else ()):
            try:
                found.append(read(index, item))
            except _STUMBLES:
                self.set_aside(item)
                if len(self._unreadable) > _MOST_UNREADABLE:  # it takes time to stumble a million times
                    self.set_aside(items[index + 1 :])
                    break
        return found

    def set_aside(self, item: Any) -> None:
        self._unreadable.append(item)

    def finish(self, answer: Answer, response: Any) -> Answer:
        """The answer, with what could not be read of it beside it; an UpstreamError if that leaves no answer."""
        if not self._unreadable:
            return answer
        if not (answer.text.strip() or answer.tool_calls or answer.finish_reason == "blocked"):
            raise UpstreamError.found_in(response)
        return answer.model_copy(update={"artifacts": {**answer.artifacts, UNREADABLE: self._unreadable}})


def reader(read: Callable[[Any], Answer]) -> Callable[[Any], Answer]:
    """Makes what `read` stumbles over the response's own fault: it has not the shape that its protocol promises."""

    @wraps(read)
    def guarded(response: Any) -> Answer:
        try:
            return read(response)
        except UpstreamError as error:
            error.body = mended(error.body)
            raise
        except _STUMBLES:
            raise UpstreamError.found_in(mended(response)) from None

    return guarded


def count_values(body: bytes) -> int:
    """Count the values that JSON may have, as MOST_VALUES counts them: by commas and brackets, in texts as well."""
    return body.count(b",") + 8 * (body.count(b"[") + body.count(b"{"))


async def read_body(read: Callable[[Any], Answer], body: bytes | str) -> Answer:
    """Read the answer in the body of a response; a large one on a thread, so that it does not hold up other calls."""
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
    """Return what an error can quote of a body: its first items, down to a few levels, and the first part of a text."""
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
    """Count the values in lists and objects, at any depth, no further than to `most`."""
    ahead, count = [value], 0
    while ahead and count <= most:
        each = ahead.pop()
        if isinstance(each, dict | list):
            count += len(each)
            ahead.extend(each.values() if isinstance(each, dict) else each)
    return count > most


def call_id(given: Any, index: int) -> Any:
    """Return the id of a tool call; for one that came without, `call_` and its place in the answer.

    For every provider alike: the call was paid for, and its result can be given back under that id.
    """
    return given or f"call_{index}"


def as_text(value: Any) -> str | None:
    """A text that is not one is unknown, and no reason to lose the answer beside it."""
    return value if isinstance(value, str) else None


def text_in(item: dict[str, Any], name: str) -> str:
    """The text under that name, without which the item says nothing."""
    if not isinstance(text := item[name], str):
        raise TypeError(f"{name} is no text")
    return text


def as_object(value: Any) -> dict[str, Any]:
    """The same for an object: one that is not there says nothing."""
    return value if isinstance(value, dict) else {}


def as_count(value: Any) -> int:
    """And for one token count that matters only where there is one."""
    return value if type(value) is int and value > 0 else 0


def counts(**found: Any) -> dict[str, int]:
    """Token counts. What is no count is unknown, and left out."""
    return {name: count for name, count in found.items() if type(count) is int and 0 <= count <= NO_CALL_TAKES}


class UpstreamError(Exception):
    """What came back is no answer.

    `status` is the one it came under or, for an error sent under HTTP 200, should have come under; None when
    nobody can tell what it is.
    """

    def __init__(self, status: int | None, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(body)[:200])
        self.status = status
        self.body = body
        self.headers = headers or {}

    @classmethod
    def found_in(cls, response: Any) -> UpstreamError:
        """What is wrong with a response that has not the shape of an answer."""
        if isinstance(response, dict) and (error := response.get("error")):
            code = error.get("code") if isinstance(error, dict) else None
            known = isinstance(code, int) and 400 <= code <= 599  # noqa: PLR2004 (HTTP's own range)
            return cls(code if known else 500, response)
        return cls(None, response)
