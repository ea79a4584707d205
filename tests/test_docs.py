"""Tests of the documentation: its tables equal the code, and its commands and links are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pollux_flows.capabilities import MATRIX
from pollux_flows.cli import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SIGNS = {"yes": "✅", "no": "❌", "model": "⚠️"}
MOST_LINES = 150


def read_code() -> str:
    return "".join(path.read_text() for path in (ROOT / "pollux_flows").rglob("*.py"))


def list_commands(page: Path) -> list[str]:
    """Return the lines of all shell examples of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES


def test_the_capability_table_equals_the_matrix_in_the_code() -> None:
    """The page has exactly the rows of the matrix, in order."""
    rows = [f"| {row.title} | " + " | ".join(SIGNS[cell] for cell in row.support) + " |" for row in MATRIX.values()]
    page = (ROOT / "docs" / "providers.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("| ") and line[-3] in "✅❌️"] == rows


def test_every_setting_is_listed() -> None:
    named = set(re.findall(r"\bPOLLUX_[A-Z_]+[A-Z]\b", read_code()))
    listed = set(re.findall(r"^\| `(POLLUX_[A-Z_]+)`", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE))
    assert listed == named


def test_every_flow_is_in_the_reference() -> None:
    from pollux_flows import __all__ as names
    from pollux_flows import flows

    listed = set(
        re.findall(r"^\.\. auto\w+:: pollux_flows\.(\S+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    )
    forms = {f"flows.{name}" for name in flows.__all__ if f"a{name}" in flows.__all__}
    assert forms | set(names) <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_is_valid(page: Path) -> None:
    """The parser of `pollux-flows` accepts its commands, and the Makefile has the targets."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in list_commands(page):
        program, *words = shlex.split(line)
        if program == "pollux-flows":
            app.parse_args(words, exit_on_error=False, print_error=False)
        elif program == "make":
            assert words[0] in targets
        else:
            assert program in {"cd", "export", "pip", "prefect", "python", "uvicorn"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_has_a_target(page: Path) -> None:
    """Sphinx checks links of the site, but the README is not part of it."""
    for link in re.findall(r"\]\(([^):#]+)\)", page.read_text()):
        assert (page.parent / link).is_file(), link
