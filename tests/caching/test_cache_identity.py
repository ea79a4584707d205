"""Cache identity: equal for equal contents, whatever their location and notation, and different otherwise."""

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


def compute_identity(content: dict[str, Any]) -> str:
    names = [source_identity(source, "gemini") for source in content["sources"]]
    contents = cache_contents_identity(content["system_instruction"], content["tools"], names)
    return cache_identity(content["target"], content["account"], contents)


def describe(content: dict[str, Any]) -> str:
    """Return everything that counts of a content as JSON: the identity must differ where this differs."""
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
def test_identities_are_equal_exactly_if_the_contents_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (compute_identity(one) == compute_identity(other)) == (describe(one) == describe(other))


def shuffle(value: Any, seed: int) -> Any:
    """Return the same JSON with the keys of each object in random order."""
    if isinstance(value, dict):
        names = list(value)
        random.Random(seed).shuffle(names)  # noqa: S311 (no secret)
        return {name: shuffle(value[name], seed) for name in names}
    return [shuffle(item, seed) for item in value] if isinstance(value, list) else value


@given(st.lists(json_objects, max_size=3), st.integers(0, 9))
def test_the_order_of_keys_does_not_count(declared: list[dict[str, Any]], seed: int) -> None:
    assert cache_contents_identity(None, declared, []) == cache_contents_identity(None, shuffle(declared, seed), [])


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
def test_each_part_of_a_cache_is_in_its_identity(change: str) -> None:
    """The cache key of the seeds did not distinguish all of these."""
    plain: dict[str, Any] = {
        "target": TARGET,
        "account": "mine",
        "system_instruction": None,
        "tools": None,
        "sources": [Source.from_text("a"), Source.from_text("b")],
    }
    assert compute_identity(plain) != compute_identity({**plain, **CHANGES[change]})


def test_equal_values_in_different_parts_have_different_identities() -> None:
    """The identity labels each part."""
    plain: dict[str, Any] = {"target": TARGET, "account": "x", "system_instruction": None, "tools": None, "sources": []}
    assert compute_identity({**plain, "account": KEY}) != compute_identity({**plain, "system_instruction": KEY})


def test_the_settings_of_a_video_are_in_the_identity() -> None:
    video = Source.from_youtube("https://youtu.be/x")
    names = {
        source_identity(each, "gemini")
        for each in (video, video.with_gemini_video_settings(fps=1), video.with_gemini_video_settings(end_offset="9s"))
    }
    assert len({cache_contents_identity(None, None, [name]) for name in names}) == 3


async def prepare(*files: Source, key: str = KEY, **request: Any) -> PreparedCache:
    config = Config(provider="gemini", model="gemini-2.5-flash", api_key=key)
    return await prepare_cache(CacheRequest(sources=list(files), **request), config)


async def test_a_moved_file_keeps_the_identity_of_its_cache(tmp_path: Path) -> None:
    """Name and lifetime do not count; another content or another key changes the identity."""
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 content")
    before = await prepare(Source.from_file(tmp_path / "a.pdf"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.pdf").rename(tmp_path / "elsewhere" / "b.pdf")
    moved = Source.from_file(tmp_path / "elsewhere" / "b.pdf")
    assert (await prepare(moved, ttl_seconds=60)).identity == before.identity
    other_key = await prepare(moved, key="sk-another-0123456789abcdef")
    assert other_key.identity != before.identity
    assert other_key.contents_identity == before.contents_identity
    (tmp_path / "elsewhere" / "b.pdf").write_bytes(b"%PDF-1.7 other content")
    assert (await prepare(moved)).identity != before.identity


async def test_a_shared_account_is_equal_everywhere_and_does_not_contain_the_key() -> None:
    """Workers without a common store find each other's caches by it."""
    account = await derive_shared_account(KEY)
    assert account == await derive_shared_account(KEY)
    assert KEY not in account
    assert account != await derive_shared_account(KEY + "x")
    assert await derive_shared_account(None) == "nobody"


def make_handle(**fields: Any) -> CacheHandle:
    defaults = {"name": "cachedContents/a", "model": TARGET.model, "provider": "gemini", "expires_at": time.time() + 60}
    return CacheHandle(**{**defaults, **fields})


def identify(cache: CacheHandle | None) -> str:
    return request_identity(TARGET, Options(cache=cache), [])


def test_a_registered_cache_counts_by_its_contents_in_the_identity_of_a_call() -> None:
    """With a recreated cache of another name and expiry, the saved answers are still found."""
    made = make_handle(identity="i", contents="c")
    again = make_handle(name="cachedContents/b", expires_at=1e10, identity="j", contents="c")
    assert identify(made) == identify(again)
    assert identify(made) != identify(make_handle(identity="i", contents="d"))


def test_an_unregistered_handle_counts_by_its_name_in_the_identity_of_a_call() -> None:
    """The expiry of the handle does not count."""
    assert identify(make_handle()) == identify(make_handle(expires_at=1e10))
    assert len({identify(make_handle()), identify(make_handle(name="cachedContents/b")), identify(None)}) == 3
