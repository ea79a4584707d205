"""How results are stored: as JSON that can only ever become this package's own documents and errors.

Prefect's own JSON serializer restores any class that a dict names under `__class__`. A model's structured answer is
such a dict, written by whoever talked the model into it: here it stays data.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prefect.serializers import JSONSerializer

from pollux_flows import errors
from pollux_flows.document import Document

_DOCUMENT = {"pollux_document", "json"}
_ERROR = {"pollux_error", "message"}


def encode(value: Any) -> dict[str, Any]:
    """A document as its name and its JSON, in one string: nothing inside is looked at when it is read."""
    kind = type(value)
    if isinstance(value, Document) and kind.__module__.startswith("pollux_flows."):
        return {"pollux_document": f"{kind.__module__}:{kind.__qualname__}", "json": value.model_dump_json()}
    if isinstance(value, BaseException):
        return {"pollux_error": kind.__name__, "message": str(value)}
    raise TypeError(f"A {kind.__name__} is no part of a result.")


def decode(data: dict[str, Any]) -> Any:
    """The reverse."""
    if data.keys() == _DOCUMENT:
        return _document(str(data["pollux_document"])).model_validate_json(data["json"])
    if data.keys() == _ERROR:
        return _error(str(data["pollux_error"]), str(data["message"]))
    return data


def _document(name: str) -> type[Document]:
    module, _, kind = name.partition(":")
    if module.startswith("pollux_flows."):
        try:
            found = getattr(import_module(module), kind)
        except (ImportError, AttributeError):
            found = None
        if isinstance(found, type) and issubclass(found, Document):
            return found
    raise ValueError(f"{name!r} is no document of this pollux_flows.")


def _error(name: str, message: str) -> Exception:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.PolluxError):
        return kind(message)
    return RuntimeError(f"{name}: {message}")  # another package's, by what it said


DOCUMENTS: JSONSerializer[Any] = JSONSerializer(
    object_encoder=f"{__name__}.encode", object_decoder=f"{__name__}.decode"
)
