"""Upload: computes how each event changes the state of one file at one provider.

The events are pure functions of records and the current time. The ledger saves their results.
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
from pollux_flows.state.store import Json

# After this long, a deletion without an outcome is tried again.
_DELETING_S: Final = 120.0
# For this long, a run does not repeat an upload that failed under the name of the run.
_FAILURE_S: Final = 600.0
_DAY_S: Final = 86_400.0
# The fields of an APIError that apply to all runs that waited for the upload.
_ERROR_FIELDS: Final = (
    "retryable", "status_code", "retry_after_s", "provider", "phase", "error_category", "outcome_unknown",
)  # fmt: skip


class UploadKey(Document):
    """The identity of a file: its content, type and account. Equal keys can share a file."""

    provider: ProviderName
    base_url: Text | None = None
    account: Text
    sha256: Text
    mime_type: Text

    @property
    def name(self) -> str:
        """The key of the entry in the store. A later field does not change it while the field has its default."""
        return f"upload/{digest('upload', self.model_dump(mode='json', exclude_defaults=True))}"


class Uploaded(Record):
    """A file at the provider."""

    file_id: str
    uri: str | None = None
    expires_at: float | None = Field(default=None, description="When the provider removes it, if it does.")
    details: JsonObject = Field(default_factory=dict, description="Other facts from the provider that a call needs.")

    def is_alive(self, until: float) -> bool:
        return self.expires_at is None or self.expires_at > until


@dataclass(frozen=True)
class Due:
    """A file to delete at the provider; without `uploaded`, any file whose name contains `marker`."""

    key: UploadKey
    marker: str
    uploaded: Uploaded | None
    reason: Literal["idle", "orphan", "retry"]
    why: str | None = None
    """The problem of the last attempt to delete the file."""


class Ownership(Record):
    """The use of a file by one owner."""

    until: float | None = Field(description="When the owner counts as dead unless it is renewed; None: never.")
    keep_s: float | None = Field(
        description="For how long the file stays after its release; None: until the provider removes it."
    )


class Leftover(Record):
    """A file that is no longer used, until its deletion is confirmed."""

    marker: str
    uploaded: Uploaded | None = None
    due_at: float
    reason: Literal["idle", "orphan", "retry"]
    tries: int = 0
    why: str | None = None


class Failure(Record):
    """The error of an upload, for the runs that waited for it."""

    marker: str
    owner: str
    at: float
    kind: str
    message: str
    hint: str | None = None
    facts: JsonObject = Field(default_factory=dict)

    @classmethod
    def from_error(cls, error: Exception, marker: str, owner: str, now: float) -> Self:
        if not isinstance(error, PolluxError):
            # The text of a foreign error may contain a key, so only its class is saved.
            error = APIError(f"The upload of this file by another run failed: {type(error).__name__}.")
        facts = {name: getattr(error, name) for name in _ERROR_FIELDS} if isinstance(error, APIError) else {}
        kind = next(each.__name__ for each in type(error).mro() if vars(errors).get(each.__name__) is each)
        return cls(marker=marker, owner=owner, at=now, kind=kind, message=error.message, hint=error.hint, facts=facts)

    @property
    def is_final(self) -> bool:
        """True if another attempt would fail, too."""
        return self.facts.get("retryable") is not True

    def to_error(self) -> PolluxError:
        kind: type[PolluxError] = getattr(errors, self.kind)
        return kind(self.message, hint=self.hint, **self.facts)


class Entry(Record):
    """The file of one key, its owners, and the earlier files that still have to be deleted."""

    key: UploadKey
    marker: str | None = Field(default=None, description="Part of the name of the file at the provider; None: no file.")
    since: float = 0.0
    uploaded: Uploaded | None = Field(default=None, description="None while it is being uploaded.")
    owners: dict[str, Ownership] = Field(default_factory=dict)
    keep_until: float | None = Field(
        default=0.0, description="Until when it stays without an owner; None: until the provider removes it."
    )
    leftovers: list[Leftover] = Field(default_factory=list)
    failure: Failure | None = None

    @classmethod
    def from_record(cls, record: Json) -> Self:
        try:
            return cls.model_validate(record)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"The record of an upload cannot be read: {error.message}",
                hint="Use the version that wrote it, or move the state away to start without its records.",
            ) from None

    def to_record(self) -> Json | None:
        """Return the record to store; None if there is neither a file nor a failure."""
        if self.marker is None and not self.leftovers and self.failure is None:
            return None
        return self.model_dump(mode="json", exclude_defaults=True)

    def ttl_s(self, now: float) -> float | None:
        """Return for how many seconds the record is stored unless it changes; None: without a limit."""
        if self.leftovers:
            return None
        if self.marker is None:
            return _FAILURE_S
        expires_at = self.uploaded.expires_at if self.uploaded is not None else None
        return None if expires_at is None else max(expires_at - now, 0.0) + _DAY_S

    def is_usable(self, until: float) -> bool:
        return self.uploaded is not None and self.uploaded.is_alive(until)

    # --- Events ---------------------------------------------------------------------------------------------

    def update_to(self, now: float) -> Self:
        """Remove dead owners, expired files and old failures."""
        entry = self
        for owner, ownership in self.owners.items():
            if ownership.until is not None and ownership.until <= now:
                entry = entry.remove_owner(owner, ownership.until)
        if entry.uploaded is not None and not entry.uploaded.is_alive(now):
            entry = entry.remove_file()
        leftovers = [each for each in entry.leftovers if each.uploaded is None or each.uploaded.is_alive(now)]
        if len(leftovers) < len(entry.leftovers):
            entry = entry._replace(leftovers=leftovers)
        if entry.failure is not None and entry.failure.at + _FAILURE_S <= now:
            entry = entry._replace(failure=None)
        return entry

    def start_upload(self, marker: str, now: float) -> Self:
        """Record that an upload begins. An earlier file is only replaced as it expires soon."""
        entry = self
        if self.marker is not None and self.uploaded is None:  # its uploader has died
            entry = self.add_leftover(Leftover(marker=self.marker, due_at=now, reason="orphan"))
        return entry._replace(marker=marker, since=now, uploaded=None, failure=None)

    def finish_upload(self, marker: str, uploaded: Uploaded, now: float) -> Self:
        """Record the uploaded file, or a leftover if the uploader had lost the lease."""
        if self.marker == marker and self.uploaded is None:
            return self._replace(uploaded=uploaded)
        return self.add_leftover(Leftover(marker=marker, uploaded=uploaded, due_at=now, reason="idle"))

    def abandon_upload(self, look_at: float) -> Self:
        """Record that the upload was interrupted. From `look_at` on, its file is searched for and deleted."""
        entry = self.remove_file()
        if self.marker is None:
            return entry
        return entry.add_leftover(Leftover(marker=self.marker, due_at=look_at, reason="orphan"))

    def fail_upload(self, error: Exception, owner: str, now: float, lease_s: float) -> Self:
        """Record the failure of the upload."""
        marker = self.marker or ""
        # A request that the provider refused has left no file. After any other error there may be one.
        refused = isinstance(error, PolluxError) and not getattr(error, "outcome_unknown", False)
        entry = self.remove_file() if refused else self.abandon_upload(now + lease_s)
        return entry._replace(failure=Failure.from_error(error, marker, owner, now))

    def add_owner(self, owner: str, until: float | None, keep_s: float | None) -> Self:
        return self._replace(owners={**self.owners, owner: Ownership(until=until, keep_s=keep_s)})

    def remove_owner(self, owner: str, now: float) -> Self:
        """Remove an owner. The file stays for the longest `keep_s` of its owners."""
        entry = self
        if self.failure is not None and self.failure.owner == owner:
            entry = entry._replace(failure=None)
        if (ownership := self.owners.get(owner)) is None:
            return entry
        keep_s = ownership.keep_s
        keep_until = None if None in (keep_s, self.keep_until) else max(self.keep_until or 0.0, now + (keep_s or 0.0))
        owners = {name: each for name, each in self.owners.items() if name != owner}
        return entry._replace(owners=owners, keep_until=keep_until)

    def forget_file(self, file_id: str) -> Self:
        """Remove the file from the entry if its id is `file_id`, as the provider no longer has it."""
        known = self.uploaded is not None and self.uploaded.file_id == file_id
        return self.remove_file() if known else self

    def begin_deletion(self, due: Due, now: float, *, uploading: bool) -> Self | None:
        """Withdraw the file from use before it is deleted; return None if it must not be deleted (any more)."""
        if due.marker not in {each.marker for each in self.list_due(now, uploading=uploading)}:
            return None
        entry = self.remove_file() if due.marker == self.marker else self
        before = next((each for each in self.leftovers if each.marker == due.marker), None)
        left = before or Leftover(marker=due.marker, due_at=now, reason="retry")
        changes = {"uploaded": due.uploaded, "due_at": now + _DELETING_S, "reason": "retry"}
        return entry.add_leftover(left.model_copy(update=changes))

    def finish_deletion(self, marker: str) -> Self:
        """Remove all leftovers whose name contains the marker, including those of single attempts."""
        return self._replace(leftovers=[each for each in self.leftovers if marker not in each.marker])

    def postpone_deletion(self, marker: str, why: str, now: float) -> Self:
        """Record a failed deletion, to be tried again after a growing pause."""
        before = next((each for each in self.leftovers if each.marker == marker), None)
        if before is None:
            return self
        wait_s = min(60.0 * 2.0**before.tries, _DAY_S)
        again = {"due_at": now + wait_s, "reason": "retry", "tries": before.tries + 1, "why": why}
        return self.add_leftover(before.model_copy(update=again))

    def list_due(self, now: float, *, uploading: bool) -> list[Due]:
        """Return the files that are to be deleted now. `uploading` tells whether an upload is in progress."""
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

    def remove_file(self) -> Self:
        return self._replace(marker=None, since=0.0, uploaded=None, owners={}, keep_until=0.0)

    def add_leftover(self, leftover: Leftover) -> Self:
        return self._replace(leftovers=[*self.finish_deletion(leftover.marker).leftovers, leftover])

    def _replace(self, **update: Any) -> Self:
        return self.model_copy(update=update)
