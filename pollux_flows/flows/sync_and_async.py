"""The two forms of a flow: one to call, one to await. Both run async code.

Prefect's own sync flows end by waiting up to a second for their heartbeat thread, and every run connects to the
server three or four times. These do neither: the sync form runs an async flow to its end, and both share one
connection among all that a run does.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from copy import copy
from functools import update_wrapper, wraps
from types import FunctionType
from typing import Any, Final, Generic, ParamSpec, TypedDict, TypeVar, cast

import orjson
from prefect import Flow, State
from prefect.client.schemas import StateType
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.results import aget_default_result_storage
from prefect.serializers import Serializer
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.callables import get_call_parameters

from pollux_flows.access import postponed_schemas
from pollux_flows.errors import ConfigurationError
from pollux_flows.flows.frozen_heap import frozen_heap
from pollux_flows.flows.run_logs import shorten_logs_of
from pollux_flows.flows.run_names import run_name
from pollux_flows.flows.ui_forms import REQUIRED, form_signature
from pollux_flows.frames import column_to_list
from pollux_flows.scope import FlowCall, callers, remember
from pollux_flows.serializer import DOCUMENTS

Context = TypeVar("Context", SyncClientContext, AsyncClientContext)
P = ParamSpec("P")
R = TypeVar("R")


class _FlowSettings(TypedDict):
    persist_result: bool
    result_serializer: Serializer[Any]


# Arguments of a call that are no parameters of the flow.
_SETTINGS: Final = frozenset({"return_state", "wait_for"})
_STORED: Final[_FlowSettings] = {"persist_result": True, "result_serializer": DOCUMENTS}


class _Form(Flow[P, R], Generic[P, R]):
    @property
    def __signature__(self) -> inspect.Signature:
        """The signature that Prefect makes the form of a deployment from."""
        return form_signature(self.fn)

    def _parameters(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, with a column of prompts as a list: no JSON has columns."""
        parameters = get_call_parameters(self.fn, args, kwargs)
        if "prompts" in parameters:
            parameters["prompts"] = column_to_list(parameters["prompts"], "prompts")
        return parameters

    def _serialized(self, parameters: dict[str, Any]) -> bytes:
        """The parameters as JSON, or a short refusal of what the server would refuse with all of it quoted."""
        serialized = orjson.dumps(self.serialize_parameters(parameters))
        size, most = len(serialized), get_current_settings().server.api.max_parameter_size
        if most and size > most:
            raise ConfigurationError(
                f"The prompts and sources of this run are {size:,} bytes; a Prefect server keeps {most:,} at the most.",
                hint="Pass long texts as files (Source.from_file), split the run, use run_many, or raise "
                "PREFECT_SERVER_API_MAX_PARAMETER_SIZE here and on the server.",
            )
        return serialized

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        settings = {name: kwargs.pop(name) for name in _SETTINGS & kwargs.keys()}
        parameters = self._parameters(args, kwargs)
        asked = hashlib.sha256(f"{self.name}\n".encode() + self._serialized(parameters)).hexdigest()
        return self._run(parameters, settings, FlowCall(asked, callers()))

    async def _run(self, parameters: dict[str, Any], settings: dict[str, Any], call: FlowCall) -> Any:
        """Run on one connection, and ask the server only once where results are stored."""
        async with _connection():
            flow = copy(self)
            flow.fn = _named_after(cast(Any, self.fn), call.asked)
            flow.result_storage = self.result_storage or await aget_default_result_storage()
            # Of a run that was retried and has returned a state, Prefect raises the error of the first attempt.
            wants_state = settings.pop("return_state", False)
            with frozen_heap(), remember(call):
                run = cast(
                    Coroutine[Any, Any, State[Any]],
                    Flow.__call__(flow, return_state=True, **parameters, **settings),
                )
                state = await run
            return state if wants_state else await state.aresult()

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        if missing := [name for name, value in parameters.items() if value is REQUIRED]:
            raise ConfigurationError(f"{missing[0]} is missing.", hint=f"Every run of {self.name} needs it.")
        with postponed_schemas():  # what they may import depends on the run, which Prefect enters later
            return super().validate_parameters(parameters)

    def with_options(self, *args: Any, **kwargs: Any) -> Any:
        changed = super().with_options(*args, **kwargs)
        changed.__class__ = type(self)  # Prefect makes a plain Flow of it, which would be called the other way
        return changed


shorten_logs_of(_Form)


class AsyncForm(_Form[P, Coroutine[Any, Any, R]]):
    """A flow to await."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._start(args, kwargs)


class SyncForm(_Form[P, R]):
    """A flow to call, although its function is async."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self._start(args, kwargs)
        # Not from within an `except`, whose error would stand above every error of the run in its log.
        if _in_a_loop():
            return run_coro_as_sync(run)
        return asyncio.run(run)  # which on Ctrl-C lets the run report that it was crashed


class _Completed(State[Any]):
    """A completed run. Prefect looks for futures in all that a flow returns, which takes a third of a rerun's time."""

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:  # noqa: PYI058 (the type of the method it overrides)
        yield from ()


def _named_after(function: Callable[..., Coroutine[Any, Any, Any]], asked: str) -> Callable[..., Any]:
    """The function under a name made of what is asked.

    In a flow run, Prefect finds the result of a sub-flow by the name of its function and a number, in the order of the
    calls. A parent that is retried may call in another order, and would get another question's result.
    """

    @wraps(function)
    async def named(*args: Any, **kwargs: Any) -> _Completed:
        return _Completed(type=StateType.COMPLETED, data=await function(*args, **kwargs))

    named.__qualname__ = f"{function.__qualname__}-{asked[:16]}"
    return named


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# The modules of the flows must not postpone their annotations: Prefect loads a served flow from its file, where it
# could not look up the names.


def sync_form(kind: str) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Flow[P, R]]:
    """Make an async function a flow to call; `kind` is its name."""

    def form(function: Callable[P, Coroutine[Any, Any, R]]) -> Flow[P, R]:
        _make_prompts_optional(cast(FunctionType, function))
        # To Prefect the function is async, to the caller the flow is not: no type says both.
        return SyncForm(cast(Any, function), name=kind, flow_run_name=run_name(kind), **_STORED)

    return form


def async_form(form: Flow[P, R]) -> Flow[P, Coroutine[Any, Any, R]]:
    """Return the form to await of a flow to call. Its function is named like that one's, with an `a` in front."""
    function = _copy(cast(FunctionType, form.fn))
    function.__name__ = function.__qualname__ = f"a{form.fn.__name__}"
    return AsyncForm(cast(Any, function), name=form.name, flow_run_name=run_name(form.name), **_STORED)


def _make_prompts_optional(function: FunctionType) -> None:
    """Let `prompts` be left out where `prompts_from` can stand in, although parameters without a default follow it."""
    if "prompts_from" in (function.__kwdefaults__ or {}):
        defaults = function.__defaults__ or ()
        missing = function.__code__.co_argcount - len(defaults) - 1
        function.__defaults__ = ([], *[REQUIRED] * missing, *defaults)


def _copy(function: FunctionType) -> FunctionType:
    """Return a copy, so that it can have a name of its own; Prefect looks up the file that a function stands in."""
    copied = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    update_wrapper(copied, function)
    del copied.__dict__["__wrapped__"]
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


@asynccontextmanager
async def _connection() -> AsyncIterator[None]:
    """The connections to the Prefect server that all of a run finds and uses: the caller's, or new ones."""
    with SyncClientContext.get() or _new(SyncClientContext):
        existing = AsyncClientContext.get()
        if existing is not None and existing.client.loop is asyncio.get_running_loop():
            yield
            return
        async with _new(AsyncClientContext):
            yield


def _new(kind: type[Context]) -> Context:
    if not (PREFECT_API_URL.value() or "").startswith("http://"):
        return kind()
    # Prefect reads all certificates for each client, which takes 20 ms; plain http needs none of them.
    context = kind(httpx_settings={"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)})
    context._httpx_settings = None  # noqa: SLF001 (else only those who ask for the same settings would get it)
    return context
