"""The streaming JSON reader: it reads one array of a document item by item, in bounded memory."""

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows.simulator.long_json import BadJsonError, LongJson

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@given(st.lists(JSON, max_size=5), JSON, JSON, st.integers(1, 7), st.booleans())
def test_items_and_rest_are_read_from_any_pieces(
    rows: list[Any], before: Any, after: Any, size: int, is_spaced: bool
) -> None:
    """The reader returns the items and the rest of a document that is cut into pieces anywhere."""
    document = {"before": before, "batch": {"rows": rows, "name": before}, "after": after}
    content = json.dumps(document, ensure_ascii=False, indent=1 if is_spaced else None).encode()
    reader = LongJson(pieces(content, size), ("batch", "rows"))
    assert list(reader.items()) == rows
    document["batch"]["rows"] = rows[:1]
    assert reader.rest == document


def test_path_names_can_be_normalized() -> None:
    """The path is compared with normalized names of fields."""
    reader = LongJson(iter([b'{"The_Rows":[1,2]}']), ("therows",), lambda name: name.replace("_", "").lower())
    assert list(reader.items()) == [1, 2]
    assert reader.rest == {"The_Rows": [1]}


@pytest.mark.parametrize("document", [[], {}, {"rows": {"a": [1]}}, {"other": [1]}, 3, "text", None])
def test_a_document_may_have_no_array_at_the_path(document: Any) -> None:
    """Without the array there are no items, and the rest is the document."""
    reader = LongJson(iter([json.dumps(document).encode()]), ("rows",))
    assert list(reader.items()) == []
    assert reader.rest == document


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"rows":[1,2}',
        b'{"rows":[1,,2]}',
        b'{"rows":[1] "a":2}',
        b'{"rows":[tru',
        b'{"rows":["text',
        b'{"rows":[NaN]}',
        b'{"rows":[1]}}',
        b"{rows:[1]}",
        b"{1:[1]}",
        b'{"rows":["\\x"]}',
        b'{"rows":["\xff"]}',
        b'{"rows":["\xe2"',
        b'{"rows":[' + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_invalid_json_is_refused(content: bytes, size: int) -> None:
    """Invalid JSON raises, even after some items were read."""
    with pytest.raises(BadJsonError):
        list(LongJson(pieces(content, size), ("rows",)).items())


def test_a_long_document_takes_little_memory() -> None:
    """A document of 40 MB is read with less than 12 MiB of memory."""
    row = json.dumps({"text": "x" * 1000}).encode()

    def long() -> Iterator[bytes]:
        yield b'{"rows":['
        for _ in range(40):
            yield b"".join([row + b","] * 1000)
        yield row + b"]}"

    tracemalloc.start()
    try:
        assert sum(1 for _ in LongJson(long(), ("rows",)).items()) == 40_001
        assert tracemalloc.get_traced_memory()[1] < 12 * 1024 * 1024
    finally:
        tracemalloc.stop()
