"""OpenRouter's model catalogue, which requests are checked against. Only this check needs the network."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pollux_flows.errors import ConfigurationError
from pollux_flows.providers.base import Call, UpstreamError, as_object
from pollux_flows.providers.chat import json_or_text

if TYPE_CHECKING:
    import httpx2

_FRESH_S: Final = 300
# For each option, the parameters of the catalogue of which the model must have one.
_NEEDED: Final = {
    "response_schema": {"structured_outputs", "response_format"},
    "reasoning_effort": {"reasoning", "reasoning_effort"},
    "tools": {"tools"},
    "tool_choice": {"tool_choice"},
    "max_tokens": {"max_tokens", "max_completion_tokens"},
    "temperature": {"temperature"},
    "top_p": {"top_p"},
}


@dataclass(frozen=True)
class _Model:
    """A model's entry in the catalogue. A missing fact is None, and nothing is refused because of it."""

    says: list[str] | None  # its output modalities
    sees: list[str] | None  # its input modalities
    takes: list[str] | None  # its parameters


# For each address, the time when the catalogue was read, and its models.
_catalogues: dict[str, tuple[float, dict[str, _Model]]] = {}


async def check(client: httpx2.AsyncClient, call: Call) -> None:
    """Raise if the model is unknown, or does not support an option, which OpenRouter would silently ignore."""
    catalogue = await _catalogue(client)
    # A variant (model:free, model:nitro) is the same model on another route.
    model = catalogue.get(call.model) or catalogue.get(call.model.partition(":")[0])
    if model is None:
        close = difflib.get_close_matches(call.model, catalogue, n=3)
        raise ConfigurationError(
            f"OpenRouter has no model {call.model!r}.",
            hint=f"Did you mean {' or '.join(close)}?"
            if close
            else "Write it as vendor/model, as on openrouter.ai/models.",
        )
    if model.says is not None and "text" not in model.says:
        raise ConfigurationError(f"{call.model} does not answer in text.", hint="Choose a model that does.")
    shown = any(material.mime_type.startswith("image/") for material in call.all_materials)
    if shown and model.sees is not None and "image" not in model.sees:
        raise ConfigurationError(
            f"{call.model} accepts no images.", hint="Choose a model that does, or leave them out."
        )
    for name, enough in _NEEDED.items():
        is_set = getattr(call.options, name) not in (None, []) or (name == "tools" and call.tools_called)
        if is_set and model.takes is not None and not enough.intersection(model.takes):
            raise ConfigurationError(
                f"{call.model} does not support {name} on OpenRouter.",
                hint=f"Leave {name} out, or choose a model that lists {' or '.join(sorted(enough))}.",
            )


async def _catalogue(client: httpx2.AsyncClient) -> dict[str, _Model]:
    address = str(client.base_url)
    read_at, models = _catalogues.get(address, (-_FRESH_S, {}))
    if time.monotonic() - read_at < _FRESH_S:
        return models
    response = await client.get("models")
    if not response.is_success:
        raise UpstreamError(response.status_code, json_or_text(response), headers=response.headers)
    listed = response.json()
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise UpstreamError.found_in(listed)
    models = {model["id"]: _read(model) for model in map(as_object, listed["data"]) if isinstance(model.get("id"), str)}
    _catalogues[address] = (time.monotonic(), models)
    return models


def _read(model: dict[str, Any]) -> _Model:
    return _Model(
        sees=_list_or_none(as_object(model.get("architecture")).get("input_modalities")),
        says=_list_or_none(as_object(model.get("architecture")).get("output_modalities")),
        takes=_list_or_none(model.get("supported_parameters")),
    )


def _list_or_none(value: Any) -> list[str] | None:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else None
