"""Serializer of stored results: JSON that is read back only as documents and errors of this package.

Each stored class has a short name, which never changes, and a version, so that files and classes can be moved and
renamed, and older results can still be read. Prefect stores the names of this module, of `encode` and of `decode`
beside results, so these three must not change either.

Prefect's own JSON serializer restores any class that a dict names under `__class__`. The structured answer of a
manipulated model can be such a dict. Here it stays data.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from prefect.serializers import JSONSerializer

from pollux_flows import __version__, errors
from pollux_flows.config import Config, Target
from pollux_flows.deferred.job import Job
from pollux_flows.deferred.report import CollectReport, JobRow
from pollux_flows.deferred.results import Item
from pollux_flows.deferred.store import JobRequest
from pollux_flows.document import Document
from pollux_flows.estimation.estimate import Estimate
from pollux_flows.handles import CacheHandle, DeferredHandle, DeferredSnapshot
from pollux_flows.mapping.report import MapReport
from pollux_flows.options import Options
from pollux_flows.output import Manifest
from pollux_flows.pipeline.caches import CacheRecord, CacheRequest
from pollux_flows.pipeline.plan import Plan
from pollux_flows.pipeline.request import Request
from pollux_flows.result import Answer, CallFailure, Outcome, ResultEnvelope, SweepReport
from pollux_flows.source import Source


class Kind(NamedTuple):
    """A class whose documents are stored. Raise `version` when an older version of this package would misread them."""

    document: type[Document]
    version: int = 1


# All documents that a flow returns or a job stores. Add names; never rename or reuse one.
KINDS: Final[dict[str, Kind]] = {
    "answer": Kind(Answer),
    "cache-handle": Kind(CacheHandle),
    "cache-record": Kind(CacheRecord),
    "cache-request": Kind(CacheRequest),
    "call-failure": Kind(CallFailure),
    "collect-report": Kind(CollectReport),
    "config": Kind(Config),
    "deferred-handle": Kind(DeferredHandle),
    "deferred-snapshot": Kind(DeferredSnapshot),
    "estimate": Kind(Estimate),
    "job": Kind(Job),
    "job-item": Kind(Item),
    "job-request": Kind(JobRequest),
    "job-row": Kind(JobRow),
    "manifest": Kind(Manifest),
    "map-report": Kind(MapReport),
    "options": Kind(Options),
    "outcome": Kind(Outcome),
    "plan": Kind(Plan),
    "request": Kind(Request),
    "result-envelope": Kind(ResultEnvelope),
    "source": Kind(Source),
    "sweep-report": Kind(SweepReport),
    "target": Kind(Target),
}

# Version 0.1.0 stored the module and the class instead. This list is complete.
_MODULE_PATHS: Final[dict[str, str]] = {
    "pollux_flows.config:Config": "config",
    "pollux_flows.config:Target": "target",
    "pollux_flows.deferred.book:Asked": "job-request",
    "pollux_flows.deferred.job:Job": "job",
    "pollux_flows.deferred.manifest:Manifest": "manifest",
    "pollux_flows.deferred.report:CollectReport": "collect-report",
    "pollux_flows.deferred.report:JobRow": "job-row",
    "pollux_flows.deferred.results:Item": "job-item",
    "pollux_flows.handles:CacheHandle": "cache-handle",
    "pollux_flows.handles:DeferredHandle": "deferred-handle",
    "pollux_flows.handles:DeferredSnapshot": "deferred-snapshot",
    "pollux_flows.options:Options": "options",
    "pollux_flows.pipeline.plan:Plan": "plan",
    "pollux_flows.pipeline.request:Request": "request",
    "pollux_flows.result:Answer": "answer",
    "pollux_flows.result:CallFailure": "call-failure",
    "pollux_flows.result:Outcome": "outcome",
    "pollux_flows.result:ResultEnvelope": "result-envelope",
    "pollux_flows.result:SweepReport": "sweep-report",
    "pollux_flows.source:Source": "source",
}

_NAMES: Final = {kind.document: name for name, kind in KINDS.items()}
_UNVERSIONED: Final = {"pollux_document", "json"}
_DOCUMENT: Final = {*_UNVERSIONED, "version"}
_ERROR: Final = {"pollux_error", "message"}


def encode(value: Any) -> dict[str, Any]:
    """Return a document as its name, its version and its JSON, which is one string, so that `decode` ignores it."""
    if (name := _NAMES.get(type(value))) is not None:
        return {"pollux_document": name, "version": KINDS[name].version, "json": value.model_dump_json()}
    if isinstance(value, BaseException):
        return {"pollux_error": type(value).__name__, "message": str(value)}
    raise TypeError(
        f"A {type(value).__name__} cannot be part of a stored result: it is not in pollux_flows.serializer."
    )


def decode(data: dict[str, Any]) -> Any:
    """Return the document or the error that this dict describes, or any other dict unchanged."""
    if data.keys() in (_DOCUMENT, _UNVERSIONED):
        name = data["pollux_document"]
        return _kind(name, data.get("version", 1)).document.model_validate_json(data["json"])
    if data.keys() == _ERROR:
        return _error(str(data["pollux_error"]), str(data["message"]))
    return data


def _kind(name: object, version: object) -> Kind:
    kind = KINDS.get(_MODULE_PATHS.get(str(name), str(name)))
    if kind is None:
        raise ValueError(f"{name!r} is not a document that this version of pollux_flows ({__version__}) knows.")
    if not isinstance(version, int) or version > kind.version:
        raise ValueError(
            f"This {name} was stored by a newer version of pollux_flows (its format is {version}; version "
            f"{__version__} reads up to {kind.version}). Update pollux_flows here."
        )
    return kind


def _error(name: str, message: str) -> Exception:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.PolluxError):
        return kind(message)
    return RuntimeError(f"{name}: {message}")  # an error of another package


DOCUMENTS: JSONSerializer[Any] = JSONSerializer(
    object_encoder=f"{__name__}.encode", object_decoder=f"{__name__}.decode"
)
