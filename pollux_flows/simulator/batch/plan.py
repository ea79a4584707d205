"""Plans: the outcomes of batches, which succeed unless a plan says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Every way in which a batch can end, with its effect as a client sees it.
ENDS: Mapping[str, str] = {
    "completed": "every row has its result",
    "partial": "it is completed, but only some rows were answered; the others failed, as with a 500",
    "expired": "its time was up when only some rows were answered",
    "cancelled": "it was cancelled elsewhere when only some rows were answered",
    "failed": "it was accepted, and then failed completely (Anthropic: all its rows did)",
    "queue_full": "it was accepted, and then failed because too much is waiting already, as OpenAI does it",
}
ANSWERED_SHARE = 0.5


@dataclass(frozen=True)
class Plan:
    """The outcome of one batch.

    `Plan(end="expired", answered=0.25, missing=2)`: a quarter of the rows are answered (always the first
    ones), the others expire, and two results are left out.
    """

    end: str = "completed"
    #: The share of the rows that are answered, where the end leaves some without. Gemini gives a batch that
    #: expired or was cancelled no results at all, unless this is set.
    answered: float | None = None
    #: Whether the results are in another order than the rows. Those of Gemini's rows without a key never are.
    shuffled: bool = True
    #: The number of results that are left out.
    missing: int = 0
    #: The number of results that are repeated.
    duplicates: int = 0
    #: The number of additional results, with ids that were not submitted.
    unknown: int = 0
    #: The name of its state before it has ended, instead of the provider's own.
    status: str | None = None
    #: The address of the results, for Anthropic.
    results_url: str | None = None
    #: Its duration, instead of the simulator's `batch_s`.
    takes_s: float | None = None
    #: The error of the batch, or of its rows.
    code: str | None = None
    message: str | None = None

    def __post_init__(self) -> None:
        if self.end not in ENDS:
            raise ValueError(f"unknown end of a batch {self.end!r}; one of: {', '.join(ENDS)}")
        if self.answered is not None and not 0 <= self.answered <= 1:
            raise ValueError("answered is a share of the rows, between 0 and 1")
        if min(self.missing, self.duplicates, self.unknown) < 0:
            raise ValueError("missing, duplicates and unknown are numbers of rows, at least 0")
        if self.takes_s is not None and self.takes_s < 0:
            raise ValueError("takes_s cannot be negative")
