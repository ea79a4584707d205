"""Gemini's cache endpoints below `cachedContents`."""

from __future__ import annotations

from typing import Any

from pollux_flows.simulator.gemini import attachments, fields, rules
from pollux_flows.simulator.gemini.caches import Cache, expiry
from pollux_flows.simulator.gemini.reading import message_tokens
from pollux_flows.simulator.wire import BadRequest, Call, Operation, Refusal, Reply

_PATH = "/{version:apiversion}/cachedContents"


def _create(call: Call) -> Reply:
    message = rules.read_message(call.body, fields.CACHE)
    model = message["model"].removeprefix("models/")
    rules.check_model(model)
    rules.check_cacheable(model)
    rules.check_contents(message.get("contents") or [])
    attachments.check(call, message.get("contents") or [])
    if not message.keys() & {"contents", "systemInstruction", "tools"}:
        raise BadRequest("* CreateCachedContentRequest.cached_content: no content to cache\n")
    now, size = call.simulator.now(), message_tokens(message, call.files)
    if size < call.simulator.gemini_cache_minimum:
        raise BadRequest(
            f"Cached content is too small. total_token_count={size}, "
            f"min_total_token_count={call.simulator.gemini_cache_minimum}"
        )
    cache = Cache(
        name=f"cachedContents/simulated{call.simulator.next_number():08d}",
        model=f"models/{model}",
        display_name=message.get("displayName"),
        tokens=size,
        account=call.account,
        created=now,
        updated=now,
        expires=_expires(message, now),
        message=message,
    )
    call.simulator.gemini_caches.add(cache)
    return Reply(cache.as_json())


def _list(call: Call) -> Reply:
    now = call.simulator.now()
    listed = now - call.simulator.gemini_cache_listed_after_s
    caches = [cache for cache in call.simulator.gemini_caches.list_owned(call.account, now) if cache.created <= listed]
    try:
        size = int(call.query.get("pageSize", 1000))
        start = int(call.query.get("pageToken", 0))
    except ValueError:
        raise BadRequest("Invalid page token or page size.") from None
    body: dict[str, Any] = {}
    if page := caches[start : start + size]:
        body["cachedContents"] = [cache.as_json() for cache in page]
    if start + size < len(caches):
        body["nextPageToken"] = str(start + size)
    return Reply(body)


def _get(call: Call) -> Reply:
    return Reply(_find(call).as_json())


def _update(call: Call) -> Reply:
    message = rules.read_message(call.body, fields.CACHE_UPDATE)
    cache = _find(call)
    now = call.simulator.now()
    return Reply(call.simulator.gemini_caches.extend(cache, _expires(message, now), now).as_json())


def _delete(call: Call) -> Reply:
    call.simulator.gemini_caches.remove(_find(call).name)
    return Reply({})


def _find(call: Call) -> Cache:
    cache = call.simulator.gemini_caches.get(f"cachedContents/{call.params['id']}", call.account, call.simulator.now())
    if cache is None:
        raise Refusal(403, "CachedContent not found (or permission denied)")
    return cache


def _expires(message: dict[str, Any], now: float) -> float:
    expires = expiry(message, now)
    if expires is None:
        raise BadRequest("Invalid value at 'cached_content.ttl' (type.googleapis.com/google.protobuf.Duration)")
    if expires <= now:
        raise BadRequest("CachedContent's expire_time must be in the future.")
    return expires


OPERATIONS = (
    Operation("cache.create", "POST", _PATH, _create),
    Operation("cache.list", "GET", _PATH, _list),
    Operation("cache.get", "GET", _PATH + "/{id}", _get),
    Operation("cache.update", "PATCH", _PATH + "/{id}", _update),
    Operation("cache.delete", "DELETE", _PATH + "/{id}", _delete),
)
