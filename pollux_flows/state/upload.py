"""Upload: what is known of one file at one provider, and what each event makes of that.

Everything here is plain data and arithmetic on the time that it is told; the ledger writes it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from pydantic import Field

from pollux_flows import errors
from pollux_flows.config import ProviderName
from pollux_flows.document import Document, Record
from pollux_flows.errors import APIError, ConfigurationError, PolluxError
from pollux_flows.plain import JsonObject, Text
from pollux_flows.state.identity import digest
from pollux_flows.state.process import is_dead
from pollux_flows.state.store import Json

# Whoever deletes a file and is not heard of for so long is taken for dead.
_DELETING_S: Final = 120.0
# A run that has died does not keep its successor, if that has the same name, from trying again for longer than this.
_FAILURE_S: Final = 600.0
_DAY_S: Final = 86_400.0
# What an APIError knows about itself that is true for all who waited.
_FACTS: Final = (
    "retryable", "status_code", "retry_after_s", "provider", "phase", "error_category", "outcome_unknown",
)  # fmt: skip


class UploadKey(Document):
    """One content, as one type, for one account. Equal keys can share a file."""

    provider: ProviderName
    base_url: Text | None = None
    account: Text
    sha256: Text
    mime_type: Text

    @property
    def name(self) -> str:
        """The name of its entry in the store. A field that is added later leaves it alone, at its default."""
        return f"upload/{digest('upload', self.model_dump(mode='json', exclude_defaults=True))}"


class Uploaded(Record):
    """A file that the provider has."""

    file_id: str
    uri: str | None = None
    expires_at: float | None = Field(default=None, description="When the provider removes it, if it does.")
    details: JsonObject = Field(default_factory=dict, description="What else the provider said and a call needs.")

    def lives(self, until: float) -> bool:
        return self.expires_at is None or self.expires_at > until


@dataclass(frozen=True)
class Due:
    """Something to delete at the provider. Without `uploaded`, look for a file whose name holds `marker`."""

    key: UploadKey
    marker: str
    uploaded: Uploaded | None
    reason: Literal["idle", "orphan", "retry"]
    why: str | None = None
    """What the last try to delete it met with."""


class Ownership(Record):
    until: float | None = Field(description="When an owner that is not heard of is taken for dead, if ever.")
    keep_s: float | None = Field(description="For how long the file stays once it is done; None: as the provider does.")
    process: list[str] | None = Field(default=None, description="The process that needs it, where it ends with one.")

    def ended(self, now: float) -> float | None:
        """When it was last known to need the file, if it does no more."""
        if self.until is None or (self.until > now and not (self.process and is_dead(self.process))):
            return None
        return min(self.until, now)


class Leftover(Record):
    """A file that nobody is given any more, until it is known to be gone."""

    marker: str
    uploaded: Uploaded | None = None
    due_at: float
    reason: Literal["idle", "orphan", "retry"]
    tries: int = 0
    why: str | None = None


class Failure(Record):
    """Why an upload failed, for those who waited for it."""

    marker: str
    owner: str
    at: float
    kind: str
    message: str
    hint: str | None = None
    facts: JsonObject = Field(default_factory=dict)

    @classmethod
    def of(cls, error: Exception, marker: str, owner: str, now: float) -> Self:
        if not isinstance(error, PolluxError):
            # What a stranger's error says may hold a key, so only its name is kept.
            error = APIError(f"The upload that this one waited for failed: {type(error).__name__}.")
        facts = {name: getattr(error, name) for name in _FACTS} if isinstance(error, APIError) else {}
        kind = next(each.__name__ for each in type(error).mro() if vars(errors).get(each.__name__) is each)
        return cls(marker=marker, owner=owner, at=now, kind=kind, message=error.message, hint=error.hint, facts=facts)

    @property
    def final(self) -> bool:
        """Whether trying again is of no use."""
        return self.facts.get("retryable") is not True

    def error(self) -> PolluxError:
        kind: type[PolluxError] = getattr(errors, self.kind)
        return kind(self.message, hint=self.hint, **self.facts)


class Entry(Record):
    """One key's file, who uses it, and what earlier files still have to be deleted."""

    key: UploadKey
    marker: str | None = Field(default=None, description="Stands in the provider's name for the file; None: no file.")
    since: float = 0.0
    uploaded: Uploaded | None = Field(default=None, description="None while it is being uploaded.")
    owners: dict[str, Ownership] = Field(default_factory=dict)
    keep_until: float | None = Field(default=0.0, description="Idle, it is kept so long; None: as the provider does.")
    leftovers: list[Leftover] = Field(default_factory=list)
    failure: Failure | None = None

    @classmethod
    def read(cls, record: Json) -> Self:
        try:
            return cls.model_validate(record)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"An upload is on record in a way that cannot be read: {error.message}",
                hint="Use the version that wrote it, or move the state away to begin afresh without what it knew.",
            ) from None

    def record(self) -> Json | None:
        """As it is stored; None when there is nothing left to know."""
        if self.marker is None and not self.leftovers and self.failure is None:
            return None
        return self.model_dump(mode="json", exclude_defaults=True)

    def ttl_s(self, now: float) -> float | None:
        """How long it matters, if nothing happens to it."""
        if self.leftovers:
            return None
        if self.marker is None:
            return _FAILURE_S
        expires_at = self.uploaded.expires_at if self.uploaded is not None else None
        return None if expires_at is None else max(expires_at - now, 0.0) + _DAY_S

    def usable(self, until: float) -> bool:
        return self.uploaded is not None and self.uploaded.lives(until)

    # --- Events ---------------------------------------------------------------------------------------------

    def at(self, now: float) -> Self:
        """What it is by now: owners may have died, files expired, failures be forgotten."""
        entry = self
        for owner, owned in self.owners.items():
            if (ended := owned.ended(now)) is not None:
                entry = entry.released(owner, ended)
        if entry.uploaded is not None and not entry.uploaded.lives(now):
            entry = entry.without_file()
        leftovers = [each for each in entry.leftovers if each.uploaded is None or each.uploaded.lives(now)]
        if len(leftovers) < len(entry.leftovers):
            entry = entry.but(leftovers=leftovers)
        if entry.failure is not None and entry.failure.at + _FAILURE_S <= now:
            entry = entry.but(failure=None)
        return entry

    def starting(self, marker: str, now: float) -> Self:
        """Somebody is about to upload it. A file that was there is too short-lived, and expires by itself."""
        entry = self
        if self.marker is not None and self.uploaded is None:  # whoever uploaded it has died
            entry = self.leaving(Leftover(marker=self.marker, due_at=now, reason="orphan"))
        return entry.but(marker=marker, since=now, uploaded=None, failure=None)

    def finished(self, marker: str, uploaded: Uploaded, now: float) -> Self:
        """It is there; one file too many, if whoever uploaded it had been taken for dead meanwhile."""
        if self.marker == marker and self.uploaded is None:
            return self.but(uploaded=uploaded)
        return self.leaving(Leftover(marker=marker, uploaded=uploaded, due_at=now, reason="idle"))

    def abandoned(self, look_at: float) -> Self:
        """Whoever uploaded it stopped, and what it sent may have arrived: worth a look, once it can."""
        entry = self.without_file()
        if self.marker is None:
            return entry
        return entry.leaving(Leftover(marker=self.marker, due_at=look_at, reason="orphan"))

    def failed(self, error: Exception, owner: str, now: float, lease_s: float) -> Self:
        marker = self.marker or ""
        # Of what the provider has refused, nothing is left; after anything else there may be a file.
        refused = isinstance(error, PolluxError) and not getattr(error, "outcome_unknown", False)
        entry = self.without_file() if refused else self.abandoned(now + lease_s)
        return entry.but(failure=Failure.of(error, marker, owner, now))

    def owned(self, owner: str, until: float | None, keep_s: float | None, process: list[str] | None = None) -> Self:
        return self.but(owners={**self.owners, owner: Ownership(until=until, keep_s=keep_s, process=process)})

    def released(self, owner: str, now: float) -> Self:
        """Whoever wants it longest has its way."""
        entry = self
        if self.failure is not None and self.failure.owner == owner:
            entry = entry.but(failure=None)
        if (owned := self.owners.get(owner)) is None:
            return entry
        keep_s = owned.keep_s
        keep_until = None if None in (keep_s, self.keep_until) else max(self.keep_until or 0.0, now + (keep_s or 0.0))
        owners = {name: each for name, each in self.owners.items() if name != owner}
        return entry.but(owners=owners, keep_until=keep_until)

    def forgotten(self, file_id: str) -> Self:
        known = self.uploaded is not None and self.uploaded.file_id == file_id
        return self.without_file() if known else self

    def deleting(self, due: Due, now: float, *, uploading: bool) -> Self | None:
        """Out of everybody's reach; None if it is not, or no longer, to be deleted."""
        if due.marker not in {each.marker for each in self.due(now, uploading=uploading)}:
            return None
        entry = self.without_file() if due.marker == self.marker else self
        before = next((each for each in self.leftovers if each.marker == due.marker), None)
        return entry.leaving(
            Leftover(
                marker=due.marker,
                uploaded=due.uploaded,
                due_at=now + _DELETING_S,
                reason="retry",
                tries=before.tries if before else 0,
                why=before.why if before else None,
            )
        )

    def deleted(self, marker: str) -> Self:
        """All whose name holds the marker are gone, also those of single attempts."""
        return self.but(leftovers=[each for each in self.leftovers if marker not in each.marker])

    def undeleted(self, marker: str, why: str, now: float) -> Self:
        """It could not be deleted: later again, and each time later."""
        before = next((each for each in self.leftovers if each.marker == marker), None)
        if before is None:
            return self
        wait_s = min(60.0 * 2.0**before.tries, _DAY_S)
        again = {"due_at": now + wait_s, "reason": "retry", "tries": before.tries + 1, "why": why}
        return self.leaving(before.model_copy(update=again))

    def due(self, now: float, *, uploading: bool) -> list[Due]:
        """What is to be deleted by now. `uploading` tells whether an upload without an outcome is still going on."""
        dues = [
            Due(self.key, each.marker, each.uploaded, each.reason, each.why)
            for each in self.leftovers
            if each.due_at <= now
        ]
        if self.marker is not None and self.uploaded is None and not uploading:
            dues.append(Due(self.key, self.marker, None, "orphan"))
        idle = self.uploaded is not None and not self.owners
        if self.marker is not None and idle and self.keep_until is not None and self.keep_until <= now:
            dues.append(Due(self.key, self.marker, self.uploaded, "idle"))
        return dues

    def without_file(self) -> Self:
        return self.but(marker=None, since=0.0, uploaded=None, owners={}, keep_until=0.0)

    def leaving(self, leftover: Leftover) -> Self:
        return self.but(leftovers=[*self.deleted(leftover.marker).leftovers, leftover])

    def but(self, **update: Any) -> Self:
        return self.model_copy(update=update)
