"""Forms, cut into pieces anywhere."""

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
    """The parts, each with all its content."""

    async def collect() -> list[tuple[Part, bytes]]:
        parts: list[tuple[Part, bytes]] = []
        async for part, piece in read_parts(pieces(body, sizes), BOUNDARY):
            if parts and parts[-1][0] is part:
                parts[-1] = (part, parts[-1][1] + piece)
            else:
                parts.append((part, piece))
        return parts

    return asyncio.run(collect())


# Contents that look as much like a boundary as they can.
CONTENTS = st.lists(st.sampled_from([b"\r\n", b"--", b"x", b"X", b"\r\n--xX", b"abc", b"\r", b"\n"]), max_size=12).map(
    b"".join
).filter(lambda content: b"\r\n--xXx" not in b"\r\n" + content)  # fmt: skip


@given(st.lists(CONTENTS, max_size=3), st.lists(st.integers(0, 40), max_size=30))
def test_a_form_is_the_same_however_it_is_cut(contents: list[bytes], sizes: list[int]) -> None:
    """Byte by byte or all at once."""
    body = b"".join(
        b'--xXx\r\nContent-Disposition: form-data; name="%d"; filename="f"\r\n\r\n%s\r\n' % (place, content)
        for place, content in enumerate(contents)
    )
    parts = read(body + b"--xXx--\r\n", sizes)
    assert [(part.name, content) for part, content in parts] == [
        (str(place), content) for place, content in enumerate(contents)
    ]


def test_the_headers_of_a_part_say_what_it_is() -> None:
    """Names come in quotes, and with what may not stand in quotes encoded."""
    body = (
        '--xXx\r\ncontent-disposition: form-data; name="file"; filename="%22Öl%22; 100%.pdf"\r\n'
        "Content-Type: text/plain; charset=utf-8\r\n\r\nfour\r\n--xXx--"
    ).encode()
    assert read(body, []) == [(Part("file", '"Öl"; 100%.pdf', "text/plain; charset=utf-8"), b"four")]


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b"', b"a b"),
    ],
)
def test_a_boundary_is_found(header: str, boundary: bytes) -> None:
    """Quoted or not."""
    assert boundary_of(header) == boundary


@pytest.mark.parametrize("header", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=a"])
def test_without_a_boundary_there_is_no_form(header: str) -> None:
    """And that is said."""
    with pytest.raises(BadMultipart):
        boundary_of(header)
