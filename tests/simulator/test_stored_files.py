"""The store behind all Files APIs, and the spool behind every upload."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows.simulator import StoredFile, stored_files
from pollux_flows.simulator.spool import CONTENT_LIMIT_BYTES, Spool
from pollux_flows.simulator.stored_files import FileStore, NameTaken


def file(name: str, expires_at: float | None = None) -> StoredFile:
    spool = Spool()
    spool.write(b"content")
    return StoredFile(
        "openai", name, "k", "a.pdf", "application/pdf", 7, spool.sha256, 0.0, None, expires_at, spool=spool
    )


def test_a_file_id_can_be_reused_after_deletion_or_expiry() -> None:
    """The store remembers the former files too."""
    now = 0.0
    store = FileStore(lambda: now)
    first, second, third = file("f", expires_at=10), file("f"), file("f")
    store.add(first)
    with pytest.raises(NameTaken):
        store.add(second)
    now = 10
    store.add(second)
    store.delete(second)
    store.add(third)
    assert store.all() == [first, second, third]
    assert [one.state for one in store.all()] == ["expired", "deleted", "active"]
    assert store.find("openai", "f", "k") is third
    assert store.find("openai", "f", "another") is None
    assert store.find("gemini", "f", "k") is None


def test_the_number_of_remembered_files_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last deleted files are remembered, since a worker's simulator lives long."""
    monkeypatch.setattr(stored_files, "MAX_GONE", 3)
    store = FileStore(lambda: 0.0)
    stays = file("stays")
    store.add(stays)
    for number in range(50):
        goes = file(f"f{number}")
        store.add(goes)
        store.delete(goes)
        assert goes.spool is None
    names = [one.id for one in store.all()]
    assert len(names) < 15
    assert {"stays", "f49"} <= set(names)
    assert stays.content() == b"content"


@given(st.lists(st.tuples(st.binary(max_size=50), st.booleans()), max_size=20))
def test_a_spool_can_be_rewound_to_a_mark(steps: list[tuple[bytes, bool]]) -> None:
    """Content and hash are those at the time of the mark."""
    spool, expected = Spool(), b""
    for piece, is_stored in steps:
        mark = spool.mark()
        spool.write(piece)
        if is_stored:
            expected += piece
        else:
            spool.rewind(mark)
    assert (spool.size, spool.sha256) == (len(expected), hashlib.sha256(expected).hexdigest())
    assert b"".join(spool.chunks()) == expected
    spool.close()


@given(st.lists(st.binary(max_size=4).map(lambda line: line.replace(b"\n", b"")), max_size=6), st.booleans())
def test_a_spool_iterates_over_its_lines(lines: list[bytes], is_ended: bool) -> None:
    """Empty lines are included, except an empty last one."""
    content = b"\n".join(lines) + (b"\n" if is_ended and lines else b"")
    spool = Spool()
    spool.write(content)
    assert list(spool.lines()) == content.split(b"\n")[: -1 if content.endswith(b"\n") or not content else None]
    spool.close()


def test_a_line_may_span_several_pieces() -> None:
    """Lines of any length, also empty ones, are read back unchanged."""
    lines = [b"a" * 200_000, b"", b"b" * 70_000, b"c"]
    spool = Spool()
    spool.write(b"\n".join(lines))
    assert list(spool.lines()) == lines
    spool.close()


@pytest.mark.parametrize(("size", "is_required", "is_stored"), [
    (CONTENT_LIMIT_BYTES, False, True),
    (CONTENT_LIMIT_BYTES + 1, False, False),
    (CONTENT_LIMIT_BYTES + 1, True, True),
])  # fmt: skip
def test_a_spool_stores_small_or_required_content(size: int, is_required: bool, is_stored: bool) -> None:
    """Content above the limit is stored only if required; hash and size are always known."""
    spool = Spool()
    if not is_required:
        spool.keep_little()
    spool.write(bytes(size))
    assert (spool.has_content, spool.size, spool.sha256) == (is_stored, size, hashlib.sha256(bytes(size)).hexdigest())
    if is_stored:
        assert b"".join(spool.chunks()) == bytes(size)
    spool.close()
