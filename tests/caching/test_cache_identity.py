"""Cache identity: equal for equal contents, wherever they lie and however they are spelt, and for nothing else."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows import CacheHandle, Config, Options, Source
from pollux_flows.config import Target
from pollux_flows.pipeline.cache_creation import PreparedCache, prepare_cache
from pollux_flows.pipeline.caches import CacheRequest
from pollux_flows.state.account import derive_shared_account
from pollux_flows.state.identity import cache_contents_identity, cache_identity, request_identity, source_identity
from tests.documents import json_objects, sources, tools

TARGET = Target(provider="gemini", model="gemini-2.5-flash")
KEY = "sk-sentinel-0123456789abcdef"


def identity_of(content: dict[str, Any]) -> str:
    names = [source_identity(source, "gemini") for source in content["sources"]]
    contents = cache_contents_identity(content["system_instruction"], content["tools"], names)
    return cache_identity(content["target"], content["account"], contents)


def said(content: dict[str, Any]) -> str:
    """All that counts of a content, as JSON: what the identity is to be as good as."""
    return json.dumps(
        [
            content["target"].model_dump(),
            content["account"],
            content["system_instruction"] or None,
            content["tools"] or [],
            [source.model_dump(mode="json", exclude={"identifier", "size_bytes"}) for source in content["sources"]],
        ],
        sort_keys=True,
    )


words = st.sampled_from(["", "a", "b", "ab", "|", "a|b", '"', "[]", "null", KEY])
targets = st.builds(
    Target,
    provider=st.just("gemini"),
    model=st.sampled_from(["gemini-2.5-flash", "gemini-2.5-pro"]),
    base_url=st.sampled_from([None, "http://127.0.0.1:1"]),
    use_mock=st.booleans(),
)
contents = st.fixed_dictionaries(
    {
        "target": targets,
        "account": words,
        "system_instruction": st.none() | words,
        "tools": st.none() | tools,
        "sources": st.lists(sources | st.builds(Source.from_text, words), max_size=3),
    }
)


@given(contents, contents)
def test_different_contents_do_not_collide(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Nor do equal ones differ."""
    assert (identity_of(one) == identity_of(other)) == (said(one) == said(other))


def shuffled(value: Any, seed: int) -> Any:
    if isinstance(value, dict):
        names = list(value)
        random.Random(seed).shuffle(names)  # noqa: S311 (no secret)
        return {name: shuffled(value[name], seed) for name in names}
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


@given(st.lists(json_objects, max_size=3), st.integers(0, 9))
def test_the_order_of_keys_does_not_count(declared: list[dict[str, Any]], seed: int) -> None:
    assert cache_contents_identity(None, declared, []) == cache_contents_identity(None, shuffled(declared, seed), [])


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"target": TARGET.model_copy(update={"model": "gemini-2.5-pro"})},
    "address": {"target": TARGET.model_copy(update={"base_url": "http://127.0.0.1:1"})},
    "mock": {"target": TARGET.model_copy(update={"use_mock": True})},
    "account": {"account": "another"},
    "system instruction": {"system_instruction": "Be brief."},
    "tools": {"tools": [{"name": "f"}]},
    "order of sources": {"sources": [Source.from_text("b"), Source.from_text("a")]},
    "one source instead of two": {"sources": [Source.from_text("ab")]},
    "a text that says what a tool says": {"sources": [Source.from_text("a"), Source.from_text('{"name":"f"}')]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_part_counts(change: str) -> None:
    """And tells apart what the seeds' own key did not."""
    plain: dict[str, Any] = {
        "target": TARGET,
        "account": "mine",
        "system_instruction": None,
        "tools": None,
        "sources": [Source.from_text("a"), Source.from_text("b")],
    }
    assert identity_of(plain) != identity_of({**plain, **CHANGES[change]})


def test_a_key_is_no_system_instruction() -> None:
    """Parts are labelled: a value in one place is another than in the next."""
    plain: dict[str, Any] = {"target": TARGET, "account": "x", "system_instruction": None, "tools": None, "sources": []}
    assert identity_of({**plain, "account": KEY}) != identity_of({**plain, "system_instruction": KEY})


def test_the_settings_of_a_video_count() -> None:
    video = Source.from_youtube("https://youtu.be/x")
    names = {
        source_identity(each, "gemini")
        for each in (video, video.with_gemini_video_settings(fps=1), video.with_gemini_video_settings(end_offset="9s"))
    }
    assert len({cache_contents_identity(None, None, [name]) for name in names}) == 3


async def prepared(*files: Source, key: str = KEY, **request: Any) -> PreparedCache:
    config = Config(provider="gemini", model="gemini-2.5-flash", api_key=key)
    return await prepare_cache(CacheRequest(sources=list(files), **request), config)


async def test_moving_a_file_makes_no_new_cache(tmp_path: Path) -> None:
    """Neither does another name or lifetime; other content, and another key, do."""
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 content")
    before = await prepared(Source.from_file(tmp_path / "a.pdf"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.pdf").rename(tmp_path / "elsewhere" / "b.pdf")
    moved = Source.from_file(tmp_path / "elsewhere" / "b.pdf")
    assert (await prepared(moved, ttl_seconds=60)).identity == before.identity
    other_key = await prepared(moved, key="sk-another-0123456789abcdef")
    assert other_key.identity != before.identity
    assert other_key.contents_identity == before.contents_identity
    (tmp_path / "elsewhere" / "b.pdf").write_bytes(b"%PDF-1.7 other content")
    assert (await prepared(moved)).identity != before.identity


async def test_the_account_is_no_key_and_equal_everywhere() -> None:
    """Workers without a common store find each other's caches by it."""
    account = await derive_shared_account(KEY)
    assert account == await derive_shared_account(KEY)
    assert KEY not in account
    assert account != await derive_shared_account(KEY + "x")
    assert await derive_shared_account(None) == "nobody"


def handle(**fields: Any) -> CacheHandle:
    given = {"name": "cachedContents/a", "model": TARGET.model, "provider": "gemini", "expires_at": time.time() + 60}
    return CacheHandle(**{**given, **fields})


def in_a_call(cache: CacheHandle | None) -> str:
    return request_identity(TARGET, Options(cache=cache), [])


def test_in_a_call_a_registered_cache_is_what_is_in_it() -> None:
    """A cache that was made again, with another name and expiry, leads to the answers that were paid for."""
    made = handle(identity="i", contents="c")
    again = handle(name="cachedContents/b", expires_at=1e10, identity="j", contents="c")
    assert in_a_call(made) == in_a_call(again)
    assert in_a_call(made) != in_a_call(handle(identity="i", contents="d"))


def test_in_a_call_a_bare_handle_is_its_name() -> None:
    """When it expires does not count."""
    assert in_a_call(handle()) == in_a_call(handle(expires_at=1e10))
    assert len({in_a_call(handle()), in_a_call(handle(name="cachedContents/b")), in_a_call(None)}) == 3
