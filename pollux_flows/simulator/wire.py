"""The words that all simulated providers share: a call comes in, a reply or a refusal goes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pollux_flows.simulator.asking import Ask
    from pollux_flows.simulator.faults import Fault
    from pollux_flows.simulator.forms import Form
    from pollux_flows.simulator.prefixes import Arrival, Block, Seen
    from pollux_flows.simulator.spool import Mark, Spool
    from pollux_flows.simulator.stored_files import StoredFile
    from pollux_flows.simulator.world import Simulator


class Refused(Exception):  # noqa: N818 (it is an answer, and no error of ours)
    """The provider says no. `kind`, `code` and `param` fill its own error body; None: its default for that status."""

    def __init__(
        self,
        status: int,
        message: str | None = None,
        *,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


Row = TypeVar("Row")


@dataclass(slots=True)
class Reply:
    #: JSON; bytes are sent as they are, and a spool piece by piece.
    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One request, read and found to come from somebody with a key."""

    world: Simulator
    provider: Provider
    headers: Mapping[str, str]
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    #: Whose key it is, as a hash of it: what an account uploads, no other can see.
    account: str = ""
    #: Where the request arrived, e.g. `http://127.0.0.1:4210`.
    origin: str = ""
    #: The query with all its repetitions.
    query_pairs: Sequence[tuple[str, str]] = ()
    #: The form that an upload brought.
    upload: Form | None = None
    #: What the preparation of its answer came to.
    prepared: Any = None
    #: What it brought in bytes: thrown away unless it was stored.
    spools: list[Spool] = field(default_factory=list)
    #: How far a chunk filled its upload.
    received: Mark | None = None
    #: The id of the file or batch that this request stored.
    stored: str | None = None
    #: The stored files that a generate request refers to, by the id or URI it used.
    files: dict[str, StoredFile] = field(default_factory=dict)
    #: What a generate request asks for, once its provider has checked it.
    asked: Ask | None = None
    #: When it began, as far as prompt caches are concerned.
    arrival: Arrival | None = None
    #: A row of a batch, whose caches are its own.
    is_batch_row: bool = False
    #: The fault that shapes the answer, if there is one.
    fault: Fault | None = None

    @property
    def ask(self) -> Ask:
        if self.asked is None:
            raise RuntimeError("only a generate request asks something")
        return self.asked

    def meet_cache(self, scope: str, blocks: Sequence[Block], *, least_tokens: int) -> Seen:
        """Read and write the prompt cache of the account. Nothing but batches reads what batches write."""
        lane = "batch" if self.is_batch_row else "realtime"
        owner = f"{self.provider.name} {self.account} {lane} {scope}"
        return self.world.prefixes.meet(
            owner, blocks, self.world.now(), arrival=self.arrival, least_tokens=least_tokens
        )


@dataclass(frozen=True)
class Operation:
    """One thing that a provider can be asked, at one path below its prefix."""

    name: str
    method: str
    path: str
    answer: Callable[[Call], Reply]
    #: Checks a generate request as strictly as the provider does, and says what it asks for.
    read: Callable[[Call], Ask] | None = None
    #: Takes in a body that is too long to be held; what it gives stands for the body in the log.
    receive: Callable[[Call, AsyncIterator[bytes]], Awaitable[Any]] | None = None
    #: What takes so long that it is done in a thread of its own, before anything is answered.
    prepare: Callable[[Call], None] | None = None
    #: The query parameter that tells this operation from another one at the same path.
    parameter: str | None = None
    #: An address that was given away as a secret needs no key.
    needs_key: bool = True
    #: On every answer, unless it says otherwise.
    headers: Mapping[str, str] = field(default_factory=dict)


class Provider(ABC):
    """A simulated provider: where it lives, how it asks for a key, how it words what goes wrong."""

    name: str
    #: Where it lives below an origin; the two together are the base URL that its SDK wants.
    prefix: str

    @abstractmethod
    def operations(self) -> Sequence[Operation]: ...

    @abstractmethod
    def authenticate(self, headers: Mapping[str, str]) -> str:
        """The key in `headers`; raises `Refused` when there is none."""

    @abstractmethod
    def request_id(self, number: int) -> str: ...

    @abstractmethod
    def headers(self, request_id: str) -> dict[str, str]:
        """The headers on every answer."""

    @abstractmethod
    def error(self, refused: Refused, request_id: str) -> Any:
        """The body of an error answer."""

    @abstractmethod
    def error_in_200(self, fault: Fault, call: Call, request_id: str) -> Any:
        """The body of an answer that says 200 and means an error."""

    @abstractmethod
    def overflow(self, ask: Ask | None) -> Refused:
        """The refusal of a prompt that is longer than the context window."""


def row(table: Mapping[int, Row], status: int) -> Row:
    """What a table of errors says about a status; about its whole class, where it has no row of its own."""
    whole_class = (
        HTTPStatus.BAD_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return table.get(status) or table[whole_class]


def bearer(headers: Mapping[str, str]) -> str:
    """The key in `Authorization: Bearer …`, or nothing."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
