"""The two forms of a flow: one to call, one to await. Both run async code.

Prefect's own sync flows wait up to a second at their end for their heartbeat thread, and every run connects to the
server three or four times. These do neither: the sync form runs an async flow to completion, and both use one
connection for the entire run.
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


# Arguments of a call that are not parameters of the flow.
_SETTINGS: Final = frozenset({"return_state", "wait_for"})
_STORED: Final[_FlowSettings] = {"persist_result": True, "result_serializer": DOCUMENTS}


class _Form(Flow[P, R], Generic[P, R]):
    @property
    def __signature__(self) -> inspect.Signature:
        """The signature that Prefect generates the form of a deployment from."""
        return form_signature(self.fn)

    def _parameters(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, with a dataframe column of prompts converted to a list, as JSON needs it."""
        parameters = get_call_parameters(self.fn, args, kwargs)
        if "prompts" in parameters:
            parameters["prompts"] = column_to_list(parameters["prompts"], "prompts")
        return parameters

    def _serialize(self, parameters: dict[str, Any]) -> bytes:
        """Return the parameters as JSON. Raises if they are too long, as the server's own error quotes all of them."""
        serialized = orjson.dumps(self.serialize_parameters(parameters))
        size, most = len(serialized), get_current_settings().server.api.max_parameter_size
        if most and size > most:
            raise ConfigurationError(
                f"The prompts and sources of this run are {size:,} bytes; a Prefect server accepts {most:,} at most.",
                hint="Pass long texts as files (Source.from_file), split the run, use run_many, or raise "
                "PREFECT_SERVER_API_MAX_PARAMETER_SIZE here and on the server.",
            )
        return serialized

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        settings = {name: kwargs.pop(name) for name in _SETTINGS & kwargs.keys()}
        parameters = self._parameters(args, kwargs)
        digest = hashlib.sha256(f"{self.name}\n".encode() + self._serialize(parameters)).hexdigest()
        return self._run(parameters, settings, FlowCall(digest, callers()))

    async def _run(self, parameters: dict[str, Any], settings: dict[str, Any], call: FlowCall) -> Any:
        """Run on one connection, and look up the result storage only once."""
        async with _connection():
            flow = copy(self)
            flow.fn = _name_by_parameters(cast(Any, self.fn), call.parameters_digest)
            flow.result_storage = self.result_storage or await aget_default_result_storage()
            # With return_state=False, Prefect raises the error of the first attempt of a retried run.
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
        with postponed_schemas():  # which schemas may be imported depends on the run, which Prefect enters later
            return super().validate_parameters(parameters)

    def with_options(self, *args: Any, **kwargs: Any) -> Any:
        changed = super().with_options(*args, **kwargs)
        changed.__class__ = type(self)  # Prefect makes it a plain Flow, which would be awaited or not the other way
        return changed


shorten_logs_of(_Form)


class AsyncForm(_Form[P, Coroutine[Any, Any, R]]):
    """A flow that is awaited."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._start(args, kwargs)


class SyncForm(_Form[P, R]):
    """A flow that is called like a function, although its own function is async."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self._start(args, kwargs)
        # Not in an `except` clause: every error of the run would be logged with its RuntimeError as the context.
        if _has_running_loop():
            return run_coro_as_sync(run)
        return asyncio.run(run)  # which on Ctrl-C lets the run report that it was crashed


class _Completed(State[Any]):
    """A completed run. Iterates as empty, as Prefect's search for futures in results takes a third of a rerun."""

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:  # noqa: PYI058 (the type of the method it overrides)
        yield from ()


def _name_by_parameters(function: Callable[..., Coroutine[Any, Any, Any]], digest: str) -> Callable[..., Any]:
    """Return the function under a name that includes the digest of its parameters.

    In a flow run, Prefect finds the result of a sub-flow by the name of its function and its place in the order of
    calls. A retried parent may call in a different order, and would get the result for other parameters.
    """

    @wraps(function)
    async def named(*args: Any, **kwargs: Any) -> _Completed:
        return _Completed(type=StateType.COMPLETED, data=await function(*args, **kwargs))

    named.__qualname__ = f"{function.__qualname__}-{digest[:16]}"
    return named


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# The modules of the flows must not postpone their annotations: Prefect loads a served flow from its file, where it
# could not look up the names.


def sync_form(kind: str) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Flow[P, R]]:
    """Turn an async function into a flow that is called synchronously; `kind` is the name of the flow."""

    def form(function: Callable[P, Coroutine[Any, Any, R]]) -> Flow[P, R]:
        _make_prompts_optional(cast(FunctionType, function))
        # Prefect needs an async function, callers a sync flow: no type expresses both.
        return SyncForm(cast(Any, function), name=kind, flow_run_name=run_name(kind), **_STORED)

    return form


def async_form(form: Flow[P, R]) -> Flow[P, Coroutine[Any, Any, R]]:
    """Return the async form of a sync flow. Its function has the same name, with an `a` in front."""
    function = _copy(cast(FunctionType, form.fn))
    function.__name__ = function.__qualname__ = f"a{form.fn.__name__}"
    return AsyncForm(cast(Any, function), name=form.name, flow_run_name=run_name(form.name), **_STORED)


def _make_prompts_optional(function: FunctionType) -> None:
    """Make `prompts` optional where `prompts_from` can replace it, although required parameters follow it."""
    if "prompts_from" in (function.__kwdefaults__ or {}):
        defaults = function.__defaults__ or ()
        missing = function.__code__.co_argcount - len(defaults) - 1
        function.__defaults__ = ([], *[REQUIRED] * missing, *defaults)


def _copy(function: FunctionType) -> FunctionType:
    """Return a copy of a function, which can be renamed. Prefect finds the file of a function by its code."""
    copied = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    update_wrapper(copied, function)
    del copied.__dict__["__wrapped__"]
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


@asynccontextmanager
async def _connection() -> AsyncIterator[None]:
    """Enter the connections to the Prefect server that the run uses: the caller's, or new ones."""
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
    # Prefect loads all CA certificates for each client, which takes 20 ms; plain http needs none of them.
    context = kind(httpx_settings={"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)})
    context._httpx_settings = None  # noqa: SLF001 (otherwise only callers with equal settings would share it)
    return context
