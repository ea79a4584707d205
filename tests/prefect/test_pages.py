"""Tests of the page of a run: failures come first, then totals, then prompts and answers, all as text."""

from __future__ import annotations

from typing import Any

import pytest

from pollux_flows import Config, Options, ResultEnvelope, Source
from pollux_flows.pages import RunInput, render_answers, render_grid
from pollux_flows.result import CallFailure

TARGET = Config(provider="openai", model="gpt-4.1-mini", use_mock=True).target
RIGHT_TO_LEFT = "\u202e"


def make_envelope(*answers: str, failures: dict[int, CallFailure] | None = None, **more: Any) -> ResultEnvelope:
    errors = [(failures or {}).get(index) for index in range(len(answers))]
    return ResultEnvelope.model_validate(
        {
            "status": "partial" if failures else "ok",
            "answers": list(answers),
            "errors": errors if failures else None,
            "usage": {},
            "metrics": {"finish_reasons": ["stop"] * len(answers), "duration_s": 1.0, "cost_usd": 0.5},
            "diagnostics": {},
            "confidence": 0.9,
            "extraction_method": "text",
            **more,
        }
    )


def make_failure(index: int, *, retryable: bool) -> CallFailure:
    return CallFailure(index=index, kind="api_error", message="not now", hint="Wait.", retryable=retryable)


def test_failures_come_first_and_say_what_a_retry_does() -> None:
    run_input = RunInput(TARGET, ["one", "two", "three"])
    page = render_answers(
        run_input,
        make_envelope("1", "", "", failures={1: make_failure(1, retryable=True), 2: make_failure(2, retryable=False)}),
        "Ok.",
    )
    assert page.startswith("## 2 of 3 prompts without an answer\n\n- 2: two — **api_error:** not now Wait.\n- 3: three")
    assert "1 of these will not succeed by a retry alone" in page
    assert "**Retry** this run. Ok." in page
    assert page.index("Retry") < page.index("| Cost | $0.50") < page.index("## 1. one")


def test_a_retry_that_cannot_help_is_not_advised() -> None:
    page = render_answers(
        RunInput(TARGET, ["one"]), make_envelope("", failures={0: make_failure(0, retryable=False)}), "Ok."
    )
    assert "**Nothing of this will succeed by a retry alone**" in page
    assert "**Retry** this run" not in page


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("<script>x</script>", "&lt;script>x&lt;/script>"),
        ("![a](https://example.com/a.png)", "!\\[a](https://example.com/a.png)"),
        ("[a](javascript:alert(1))", "[a\\](javascript:alert(1))"),
        ("[a](/admin)", "[a\\](/admin)"),
        ("[a]: data:text/html,x", "\\[a]: data:text/html,x"),
        ("[a](https://example.com)", "[a](https://example.com)"),
        (f"file{RIGHT_TO_LEFT}fdp.exe", "file⟨right-to-left override⟩fdp.exe"),
    ],
)
def test_html_images_and_links_of_an_answer_are_escaped_except_web_links(answer: str, shown: str) -> None:
    assert f"> {shown}\n" in render_answers(RunInput(TARGET, ["one"]), make_envelope(answer))


def test_structured_answers_are_tables_or_indented_json() -> None:
    flat, rows, nested = {"total": 1, "paid": True}, [{"a": "x|y"}, {"a": 2}], {"a": {"b": RIGHT_TO_LEFT}}
    page = render_answers(
        RunInput(TARGET, ["one", "two", "three"]), make_envelope("1", "2", "3", structured=[flat, rows, nested])
    )
    assert "| total | 1 |\n| paid | true |" in page
    assert "| a |\n| --- |\n| x\\|y |\n| 2 |" in page
    assert '        "b": "⟨right-to-left override⟩"' in page


def test_reasoning_is_folded_on_one_line() -> None:
    page = render_answers(RunInput(TARGET, ["one"]), make_envelope("1", reasoning=[f"<b>a\n\n{RIGHT_TO_LEFT}b"]))
    assert "<details><summary>Reasoning</summary>&lt;b&gt;a<br><br>⟨right-to-left override⟩b</details>" in page


def test_cut_answers_are_marked() -> None:
    long = "x" * 5000
    page = render_answers(
        RunInput(TARGET, ["one", "two"]),
        make_envelope(long, "", structured=[None, {"a": {"b": long}}], reasoning=[long, None]),
    )
    assert page.count("(cut here; `pollux-flows answers` shows all of it)") == 3


def test_sources_and_options_are_listed() -> None:
    source = Source.from_text("A note", identifier="note")
    page = render_answers(RunInput(TARGET, ["one"], [source], Options(temperature=0.5)), make_envelope("1"))
    assert "| 1 | note | text/plain |" in page
    assert "| temperature | 0.5 |" in page


def test_the_page_of_a_broadcast_has_a_grid_and_a_section_per_source() -> None:
    sources = [Source.from_text("x", identifier="a"), Source.from_text("y", identifier="b")]
    envelopes = [make_envelope("1", "2"), make_envelope("3", "", failures={1: make_failure(1, retryable=True)})]
    page = render_grid(RunInput(TARGET, ["one", "two"], sources, each_source=True), envelopes)
    assert page.startswith("## 1 of 4 prompts without an answer\n\n- 2 · b: two")
    assert "| Source | one | two |\n| --- | --- | --- |\n| a | 1 | 2 |\n| b | 3 | **api_error** |" in page
    assert page.index("## a\n") < page.index("### 1. one") < page.index("## b\n")
