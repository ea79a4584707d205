"""Adoption: copies answers that version 0.1.0 saved for the sub-flows of a run, so that a retry reuses them.

Version 0.1.0 saved each answer under the place of its sub-flow. A place contains numbers that Prefect assigned, and
Prefect now assigns other ones, so places are recognised by the run at their beginning. When such a run is retried, its
answers are copied to the keys of this version, and none is paid for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final

from pollux_flows.state.answer_record import make_answer_record, pointer_key, read_answer
from pollux_flows.state.identity import call_identity, digest
from pollux_flows.state.retention import retention_s
from pollux_flows.state.slots import SlotCall
from pollux_flows.state.store import Json, Store

_MARKER_LENGTH: Final = len("run/") + 64
_BATCH: Final = 250
_CACHED_RUNS: Final = 1000
# By store and run. This version creates no such places, so one search for each run is enough.
_places: Final[dict[tuple[str, str], list[str]]] = {}


async def adopt_answers(store: Store, run: str, calls: Sequence[SlotCall]) -> None:
    """Copy the answers to these calls that an earlier version saved for sub-flows of the run."""
    if not (places := await _find_places(store, run)):
        return
    name = digest("run", run)
    questions = {
        (call.request, call.prompt): f"adopted/{name}/{call_identity(call.request, call.prompt, 0)}" for call in calls
    }
    adopted = await store.get_many(questions.values())
    questions = {question: key for question, key in questions.items() if key not in adopted}
    copies: dict[str, Json] = {}
    for (request, prompt), key in questions.items():
        ordinals = count()
        for place in places:
            for occurrence in count():
                original = f"{place}/{call_identity(request, prompt, occurrence)}"
                if (record := await store.get(original)) is None:
                    break
                identity = call_identity(request, prompt, next(ordinals))
                copy, at = f"run/{name}/{identity}", record["at"]  # as old as the original
                copies[copy] = make_answer_record(copy, read_answer(original, record, store.where), at)
                # A pointer of another run may lead to a later answer.
                await store.add(pointer_key(identity), {"at": at, "place": copy}, retention_s())
        copies[key] = {"run": run}  # last, so that an interrupted copy is repeated
    if copies:
        await store.put_many(copies, retention_s())


async def _find_places(store: Store, run: str) -> list[str]:
    """Return the places of the sub-flows of a run, as an earlier version marked them."""
    if (cached := _places.get((store.where, run))) is not None:
        return cached
    keys = [key async for key in store.list_keys("run/") if len(key) == _MARKER_LENGTH]
    places: list[str] = []
    for start in range(0, len(keys), _BATCH):
        markers = await store.get_many(keys[start : start + _BATCH])
        places += [key for key, marker in markers.items() if str(marker.get("run")).startswith(f"{run}/")]
    while len(_places) >= _CACHED_RUNS:
        del _places[next(iter(_places))]
    _places[store.where, run] = sorted(places)
    return _places[store.where, run]
