"""The cache numbers in the envelope, for each call and in total: only cached tokens that the provider reports."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pollux_flows import CacheHandle, Options, run_many
from tests.loopback import MODELS, good, http, scripted

HANDLE = CacheHandle(name="cachedContents/1", model=MODELS["gemini"], provider="gemini", expires_at=time.time() + 3600)


def make_reply(cached: int | None) -> bytes:
    usage: dict[str, Any] = {"promptTokenCount": 1000, "candidatesTokenCount": 1, "totalTokenCount": 1001}
    counted = {} if cached is None else {"cachedContentTokenCount": cached}
    return http(good("gemini", usageMetadata=usage | counted))


@pytest.mark.parametrize(
    ("cached", "used", "hits"), [((900, 900), True, 2), ((900, 0), False, 1), ((900, None), False, 1)]
)
async def test_cache_used_is_true_if_every_call_read_from_the_cache(
    cached: tuple[int | None, int | None], used: bool, hits: int
) -> None:
    """One call without cached tokens makes `cache_used` false; `n_cache_hits` counts the others."""
    replies = {b"first": make_reply(cached[0]), b"second": make_reply(cached[1])}

    def choose_reply(body: bytes) -> bytes:
        return next(reply for prompt, reply in replies.items() if prompt in body)

    async with scripted(choose_reply, by_body=True) as server:
        envelope = await run_many(["first", "second"], config=server.config("gemini"), options=Options(cache=HANDLE))
    metrics = envelope.metrics
    assert (metrics["cache_used"], metrics["n_cache_hits"], metrics["cache_hit"]) == (used, hits, True)
    assert metrics["cached_tokens"] == sum(each or 0 for each in cached)
    assert [call["cache_used"] for call in envelope.diagnostics["calls"]] == [bool(each) for each in cached]


async def test_cached_tokens_that_no_provider_reports_are_absent() -> None:
    """Without a handle and a report of the provider, a call has no `cache_used`."""
    async with scripted(http(good("local"))) as server:
        envelope = await run_many(["a", "b"], config=server.config("local"))
    assert all("cache_used" not in call for call in envelope.diagnostics["calls"])
    assert "cached_tokens" not in envelope.metrics
    assert (envelope.metrics["n_cache_hits"], envelope.metrics["cache_used"]) == (0, False)
