"""The streaming form parser, with bodies that are cut into pieces anywhere."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pollux_flows.simulator.multipart import BadMultipart, Part, boundary_of, read_parts

BOUNDARY = b"xXx"


async def pieces(body: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    at = 0
    for size in sizes:
        yield body[at : at + size]
        at += size
    yield body[at:]


def read(body: bytes, sizes: list[int]) -> list[tuple[Part, bytes]]:
    """Return the parts, each with its complete content."""

    async def collect() -> list[tuple[Part, bytes]]:
        parts: list[tuple[Part, bytes]] = []
        async for part, piece in read_parts(pieces(body, sizes), BOUNDARY):
            if parts and parts[-1][0] is part:
                parts[-1] = (part, parts[-1][1] + piece)
            else:
                parts.append((part, piece))
        return parts

    return asyncio.run(collect())


# Contents that resemble the boundary.
CONTENTS = st.lists(st.sampled_from([b"\r\n", b"--", b"x", b"X", b"\r\n--xX", b"abc", b"\r", b"\n"]), max_size=12).map(
    b"".join
).filter(lambda content: b"\r\n--xXx" not in b"\r\n" + content)  # fmt: skip


@given(st.lists(CONTENTS, max_size=3), st.lists(st.integers(0, 40), max_size=30))
def test_parts_are_read_from_any_pieces(contents: list[bytes], sizes: list[int]) -> None:
    """A form has the same parts however its body is cut into pieces."""
    body = b"".join(
        b'--xXx\r\nContent-Disposition: form-data; name="%d"; filename="f"\r\n\r\n%s\r\n' % (place, content)
        for place, content in enumerate(contents)
    )
    parts = read(body + b"--xXx--\r\n", sizes)
    assert [(part.name, content) for part, content in parts] == [
        (str(place), content) for place, content in enumerate(contents)
    ]


def test_part_headers_are_parsed() -> None:
    """Names are quoted, with quotes and line breaks percent-encoded."""
    body = (
        '--xXx\r\ncontent-disposition: form-data; name="file"; filename="%22Öl%22; 100%.pdf"\r\n'
        "Content-Type: text/plain; charset=utf-8\r\n\r\nfour\r\n--xXx--"
    ).encode()
    assert read(body, []) == [(Part("file", '"Öl"; 100%.pdf', "text/plain; charset=utf-8"), b"four")]


@pytest.mark.parametrize(
    ("header", "boundary"),
    [("multipart/form-data; boundary=abc", b"abc"), ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b")],
)
def test_the_boundary_may_be_quoted(header: str, boundary: bytes) -> None:
    assert boundary_of(header) == boundary


@pytest.mark.parametrize("header", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=a"])
def test_a_content_type_without_a_boundary_is_refused(header: str) -> None:
    with pytest.raises(BadMultipart):
        boundary_of(header)
