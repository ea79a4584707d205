"""The store behind all Files APIs, and the spool behind every upload."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows.simulator import StoredFile, stored_files
from pollux_flows.simulator.spool import KEEP_BYTES, Spool
from pollux_flows.simulator.stored_files import FileStore, NameTaken


def file(name: str, expires_at: float | None = None) -> StoredFile:
    spool = Spool()
    spool.write(b"content")
    return StoredFile(
        "openai", name, "k", "a.pdf", "application/pdf", 7, spool.sha256, 0.0, None, expires_at, spool=spool
    )


def test_a_name_is_free_again_when_its_file_is_gone() -> None:
    """Deleted or expired; both files are remembered."""
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


def test_of_files_that_are_gone_only_the_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world in a worker lives long, and most of what it saw is gone."""
    monkeypatch.setattr(stored_files, "KEEP_GONE", 3)
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
def test_a_spool_goes_back_to_where_it_was(steps: list[tuple[bytes, bool]]) -> None:
    """What was written since a mark is forgotten, and its hash with it."""
    spool, kept = Spool(), b""
    for piece, is_kept in steps:
        mark = spool.mark()
        spool.write(piece)
        if is_kept:
            kept += piece
        else:
            spool.rewind(mark)
    assert (spool.size, spool.sha256) == (len(kept), hashlib.sha256(kept).hexdigest())
    assert b"".join(spool.chunks()) == kept
    spool.close()


@given(st.lists(st.binary(max_size=4).map(lambda line: line.replace(b"\n", b"")), max_size=6), st.booleans())
def test_a_spool_gives_its_lines(lines: list[bytes], is_ended: bool) -> None:
    """Empty ones too; what ends with a line end has no empty line behind it."""
    content = b"\n".join(lines) + (b"\n" if is_ended and lines else b"")
    spool = Spool()
    spool.write(content)
    assert list(spool.lines()) == content.split(b"\n")[: -1 if content.endswith(b"\n") or not content else None]
    spool.close()


def test_a_line_may_be_longer_than_a_piece() -> None:
    """And begin anywhere."""
    lines = [b"a" * 200_000, b"", b"b" * 70_000, b"c"]
    spool = Spool()
    spool.write(b"\n".join(lines))
    assert list(spool.lines()) == lines
    spool.close()


@pytest.mark.parametrize(("size", "whole", "is_kept"), [
    (KEEP_BYTES, False, True),
    (KEEP_BYTES + 1, False, False),
    (KEEP_BYTES + 1, True, True),
])  # fmt: skip
def test_a_spool_keeps_what_is_small_or_will_be_needed(size: int, whole: bool, is_kept: bool) -> None:
    """Hash and size are always known."""
    spool = Spool()
    if not whole:
        spool.keep_little()
    spool.write(bytes(size))
    assert (spool.is_kept, spool.size, spool.sha256) == (is_kept, size, hashlib.sha256(bytes(size)).hexdigest())
    if is_kept:
        assert b"".join(spool.chunks()) == bytes(size)
    spool.close()
