"""Earlier: answers that version 0.1.0 saved for the sub-flows of a run, each under the place of its sub-flow.

The places were numbered by Prefect, which numbers otherwise by now, so they are recognised by the run that they begin
with. When such a run is retried, they are copied to where this version looks: a retry pays for none of them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final

from pollux_flows.state.bounds import kept_s
from pollux_flows.state.identity import call_identity, digest
from pollux_flows.state.kept import answer_in, kept, pointer_to
from pollux_flows.state.slots import Call
from pollux_flows.state.store import Json, Store

_MARKER: Final = len("run/") + 64
_TOGETHER: Final = 250
_REMEMBERED: Final = 1000
# By store and run. This version makes no such places, so they need not be looked for again.
_found: Final[dict[tuple[str, str], list[str]]] = {}


async def adopt_answers(store: Store, run: str, calls: Sequence[Call]) -> None:
    """Copy the answers to these questions which an earlier version saved for sub-flows of the run."""
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
                earlier = f"{place}/{call_identity(request, prompt, occurrence)}"
                if (record := await store.get(earlier)) is None:
                    break
                identity = call_identity(request, prompt, next(ordinals))
                copy, at = f"run/{name}/{identity}", record["at"]  # as old as the original
                copies[copy] = kept(copy, answer_in(earlier, record, store.where), at)
                # Other runs may have been led to a later answer.
                await store.add(pointer_to(identity), {"at": at, "place": copy}, kept_s())
        copies[key] = {"run": run}  # last, so that a copy that breaks off is made again
    if copies:
        await store.put_many(copies, kept_s())


async def _find_places(store: Store, run: str) -> list[str]:
    """Return the places of the sub-flows of a run, as an earlier version marked them."""
    if (known := _found.get((store.where, run))) is not None:
        return known
    names = [name async for name in store.names("run/") if len(name) == _MARKER]
    places: list[str] = []
    for start in range(0, len(names), _TOGETHER):
        markers = await store.get_many(names[start : start + _TOGETHER])
        places += [name for name, marker in markers.items() if str(marker.get("run")).startswith(f"{run}/")]
    while len(_found) >= _REMEMBERED:
        del _found[next(iter(_found))]
    _found[store.where, run] = sorted(places)
    return _found[store.where, run]
