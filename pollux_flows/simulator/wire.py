"""The types that all simulated providers share: a call, its operation, and its reply or refusal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from pollux_flows.simulator.faults import Fault
    from pollux_flows.simulator.forms import Form
    from pollux_flows.simulator.generate_request import GenerateRequest
    from pollux_flows.simulator.prefixes import Arrival, Block, CacheUse
    from pollux_flows.simulator.simulator import Simulator
    from pollux_flows.simulator.spool import Mark, Spool
    from pollux_flows.simulator.stored_files import StoredFile


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 (it is a response, not an error of ours)
    """An error response. `kind`, `code` and `param` fill the provider's error body; None is its default."""

    status: int
    message: str | None = None
    _: KW_ONLY
    kind: str | None = None
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


class BadRequest(Refusal):
    """A refusal with status 400."""

    def __init__(
        self, message: str, *, kind: str | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(400, message, kind=kind, code=code, param=param)


Row = TypeVar("Row")


@dataclass(slots=True)
class Reply:
    #: JSON; bytes are sent unchanged, and a spool piece by piece.
    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One request, after its body is read and its key is checked."""

    simulator: Simulator
    provider: Provider
    headers: Mapping[str, str]
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    #: The start of the request, for the prompt cache.
    arrival: Arrival
    #: The account: a hash of its key. Uploads of one account are invisible to others.
    account: str = ""
    #: The origin that the request was sent to, e.g. `http://127.0.0.1:4210`.
    origin: str = ""
    #: The query, with repeated parameters.
    query_pairs: Sequence[tuple[str, str]] = ()
    #: The form of an upload.
    upload: Form | None = None
    #: The result of the operation's `prepare`.
    prepared: Any = None
    #: The spools of its uploaded bytes, which are discarded unless stored.
    spools: list[Spool] = field(default_factory=list)
    #: The state of the resumable upload after this chunk.
    received: Mark | None = None
    #: The id of the file or batch that this request stored.
    stored: str | None = None
    #: The stored files that a generate request refers to, by the id or URI it used.
    files: dict[str, StoredFile] = field(default_factory=dict)
    #: The generate request, once its provider has checked it; None for other operations.
    generate_request: GenerateRequest | None = None
    #: Whether it is a row of a batch; batches have prompt caches of their own.
    is_batch_row: bool = False
    #: The fault that shapes the answer, if there is one.
    fault: Fault | None = None

    @property
    def request(self) -> GenerateRequest:
        """Return the generate request; raise RuntimeError for other operations."""
        if self.generate_request is None:
            raise RuntimeError("this operation has no generate request")
        return self.generate_request

    def use_cache(self, scope: str, blocks: Sequence[Block], *, least_tokens: int) -> CacheUse:
        """Read and write the account's prompt cache; batches and realtime requests have separate ones."""
        lane = "batch" if self.is_batch_row else "realtime"
        owner = f"{self.provider.name} {self.account} {lane} {scope}"
        return self.simulator.prefixes.use(
            owner, blocks, self.simulator.now(), arrival=self.arrival, least_tokens=least_tokens
        )


@dataclass(frozen=True)
class Operation:
    """An endpoint of a provider: a method at one path below its prefix."""

    name: str
    method: str
    path: str
    answer: Callable[[Call], Reply]
    #: Checks a generate request as strictly as the provider does, and returns its content.
    read: Callable[[Call], GenerateRequest] | None = None
    #: Receives a body that is too long for memory; its result replaces the body in the log.
    receive: Callable[[Call, AsyncIterator[bytes]], Awaitable[Any]] | None = None
    #: Slow work before the answer, run in a thread.
    prepare: Callable[[Call], None] | None = None
    #: The query parameter that distinguishes this operation from another one at the same path.
    parameter: str | None = None
    #: False for a secret URL, which needs no key.
    needs_key: bool = True
    #: Headers on every reply, unless the reply sets them itself.
    headers: Mapping[str, str] = field(default_factory=dict)


class Provider(ABC):
    """A simulated provider: its address, its authentication, and its error format."""

    name: ClassVar[str]
    #: Its path below an origin; the two together are the base URL for its SDK.
    prefix: ClassVar[str]
    operations: ClassVar[Sequence[Operation]]
    #: The form of its request ids, and the header that has them.
    request_id: ClassVar[str]
    request_id_header: ClassVar[str] = "x-request-id"
    #: The other headers of every response.
    headers: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def authenticate(self, headers: Mapping[str, str]) -> str:
        """Return the key in `headers`; raise `Refusal` when there is none."""

    @abstractmethod
    def error(self, refusal: Refusal, request_id: str) -> Any:
        """Return the body of an error response."""

    def error_in_200(self, fault: Fault, call: Call, request_id: str) -> Any:  # noqa: ARG002 (some need the call)
        """Return the body of an error that is sent with status 200."""
        return self.error(Refusal(fault.status or 500, fault.message, kind=fault.error_type), request_id)

    @abstractmethod
    def overflow(self, request: GenerateRequest | None) -> Refusal:
        """Return the refusal of a prompt that is longer than the context window."""


def row(table: Mapping[int, Row], status: int) -> Row:
    """Return the row of a status in an error table; for an unlisted status, the row of 400 or 500."""
    class_default = (
        HTTPStatus.BAD_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return table.get(status) or table[class_default]


def bearer(headers: Mapping[str, str]) -> str:
    """Return the key in `Authorization: Bearer …`, or an empty string."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
