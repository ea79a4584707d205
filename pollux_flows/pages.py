"""Pages: the Markdown page of a run.

A page shows the failures with advice, then a summary, then each prompt with its answer, then the sources and options.
Text of a model or a source is escaped: it cannot add HTML, images, or links other than http(s).
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from pollux_flows.blocks.cache import format_time
from pollux_flows.caching.worth import price_cache
from pollux_flows.config import Target
from pollux_flows.estimation.estimate import Estimate, describe_calls, describe_cost, list_unknowns, make_table
from pollux_flows.options import Options
from pollux_flows.pipeline.caches import CacheRecord
from pollux_flows.pricing import Cost, dollars, total
from pollux_flows.result import CallFailure, ResultEnvelope
from pollux_flows.source import Source
from pollux_flows.turn import Turn

_CACHES: Final = {"explicit": "created", "warm": "the first prompt writes it", "none": "none"}
# Browsers open longer pages slowly; `pollux-flows answers` lists all.
_SHOWN: Final = 50
_LONGEST_SHOWN: Final = 4000
_LONGEST_CELL: Final = 300
_LONGEST_HEADING: Final = 80
_NO_WEB_LINK: Final = re.compile(r"(\]\(|^[ \t>]*\[[^\]\n]+\]:)(?=\s*(?!<?https?://))", re.MULTILINE)
# These change the direction of text, so that a name or an address may look like a different one.
_BIDI_MARKS: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class ConversationView:
    """The part of a conversation that a page shows."""

    name: str
    exchanges: int
    last_turns: Sequence[Turn]
    tools: Sequence[str]
    """The tools that the model may call, as import strings."""


@dataclass(frozen=True)
class RunInput:
    """The input of a run: its model, its prompts, its sources and its options."""

    target: Target
    prompts: Sequence[str | None]
    sources: Sequence[Source] = ()
    options: Options = field(default_factory=Options)
    each_source: bool = False
    """True if the prompts are asked about each source separately."""
    conversation: ConversationView | None = None
    """The conversation that the prompt is part of."""


def render_answers(
    run_input: RunInput, envelope: ResultEnvelope, advice: str | None = None, output: str | None = None
) -> str:
    """Return the page of a run with one envelope.

    `advice` says what a retry does; `output` is the file that the answers were also written to.
    """
    parts = [
        _failures(run_input, [envelope], advice),
        _summary(run_input.target, [envelope], output),
        questions(run_input.prompts, envelope),
        _conversation(run_input.conversation),
        _inputs(run_input),
    ]
    return "\n".join(line for part in parts for line in part)


def render_grid(
    run_input: RunInput, envelopes: Sequence[ResultEnvelope], advice: str | None = None, output: str | None = None
) -> str:
    """Return the page of a broadcast: a table of short answers, then a section for each source."""
    header = ["Source", *(cell(prompt or "(no prompt)", _LONGEST_HEADING) for prompt in run_input.prompts)]
    grid = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    pairs = list(zip(run_input.sources, envelopes, strict=True))
    for source, envelope in pairs[:_SHOWN]:
        cells = [
            cell(answer) if (failure := _failure(envelope, index)) is None else f"**{failure.kind}**"
            for index, answer in enumerate(envelope.answers)
        ]
        grid.append("| " + " | ".join([cell(source.identifier, 60), *cells]) + " |")
    if (more := len(pairs) - _SHOWN) > 0:
        grid += ["", f"… and {more} more sources: `pollux-flows answers` lists all."]
    sections: list[str] = []
    for source, envelope in pairs[: max(1, _SHOWN // max(1, len(run_input.prompts)))]:
        sections += ["", f"## {cell(source.identifier, _LONGEST_HEADING)}", ""]
        sections += questions(run_input.prompts, envelope, level="###")
    parts = [
        _failures(run_input, envelopes, advice),
        _summary(run_input.target, envelopes, output),
        grid,
        sections,
        _inputs(run_input),
    ]
    return "\n".join(line for part in parts for line in part)


def headline(run_input: RunInput, envelopes: Sequence[ResultEnvelope]) -> str:
    """Return the description of a page, for lists of pages."""
    calls = sum(len(envelope.answers) for envelope in envelopes)
    return f"{run_input.target.model}: {count_of(calls, 'call')}, {_status(envelopes)}"


def outcome_line(envelopes: Sequence[ResultEnvelope]) -> str:
    """Return the outcome of a run with its price as one line, for the log."""
    calls = sum(len(envelope.answers) for envelope in envelopes)
    failed = sum(failure is not None for envelope in envelopes for failure in envelope.errors or ())
    metrics = [envelope.metrics for envelope in envelopes]
    cost = total(Cost(each.get("cost_usd"), each.get("cost_unknown")) for each in metrics)
    price = "at an unknown price" if cost.usd is None else f"for {dollars(cost.usd)}"
    seconds = max((each.get("duration_s", 0.0) for each in metrics), default=0.0)
    return f"{calls - failed:,} of {count_of(calls, 'prompt')} answered {price} in {seconds:.1f} s."


def questions(prompts: Sequence[str | None], envelope: ResultEnvelope, level: str = "##") -> list[str]:
    """Return the lines of the first prompts, each with its answer, and of all warnings."""
    lines: list[str] = []
    for index, prompt in list(enumerate(prompts))[:_SHOWN]:
        lines += [f"{level} {index + 1}. {cell(prompt or '(sources only)', _LONGEST_HEADING)}", ""]
        if prompt and (len(prompt) > _LONGEST_HEADING or "\n" in prompt.strip()):
            lines += ["**Question**", "", *_quote(prompt), "", "**Answer**", ""]
        lines += _answer(envelope, index)
    if (more := len(prompts) - _SHOWN) > 0:
        lines += [f"… and {more:,} more: `pollux-flows answers` with the name of this run lists all.", ""]
    return [*lines, *_warnings([envelope])]


def render_cache(record: CacheRecord) -> str:
    """Return the page of a cache: its contents, its size, its price, and its break-even number of prompts."""
    tokens = record.tokens
    prices = None if tokens is None else price_cache(record.target, tokens)
    stored = None if prices is None else prices.stored_per_hour
    pays_from = None if prices is None else prices.break_even(record.ttl_seconds)
    rows = {
        "Model": f"{record.target.provider} · {record.target.model}",
        "At the provider": record.name or "not there yet",
        "Tokens": "not reported" if tokens is None else f"{tokens:,}",
        "Expires": "unknown" if record.expires_at is None else format_time(record.expires_at),
        "Storage": "unknown" if stored is None else f"{dollars(stored)} an hour",
        "Pays from": "unknown"
        if pays_from is None
        else f"{pays_from} prompts, while it lives for {record.ttl_seconds / 3600:g} h",
    }
    return "\n".join([*_table("", "", rows), *(f"- {cell(each)}" for each in record.contents)])


def render_estimate(estimate: Estimate) -> str:
    """Return the page of an estimate: its cost, a table of its amounts, and where each of them comes from."""
    simulated = " · simulated" if estimate.target.use_mock else ""
    header = ["", "Low", "Expected", "Worst"]
    return "\n".join(
        [
            f"**{describe_calls(estimate)}: {cell(describe_cost(estimate))}**",
            "",
            f"{estimate.target.provider} · {cell(estimate.target.model)}{simulated}",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(map(cell, row)) + " |" for row in make_table(estimate)),
            "",
            *(f"- {cell(line, _LONGEST_SHOWN)}" for line in [*list_unknowns(estimate), estimate.caching]),
            "",
            "## Where the numbers come from",
            "",
            *(f"- {cell(line, _LONGEST_SHOWN)}" for line in estimate.assumptions),
        ]
    )


def cell(text: str, longest: int = _LONGEST_CELL) -> str:
    """Return a text as a cell of a Markdown table, on one line and escaped."""
    line = " ".join(text.split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return inert(line.replace("\\", "\\\\")).replace("|", "\\|")


def inert(text: str) -> str:
    """Return a text with its HTML, images and links other than http(s) escaped."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!\\[")
    text = _NO_WEB_LINK.sub(lambda found: f"\\{found[0]}" if found[0] == "](" else found[0].replace("[", "\\["), text)
    return _name_bidi_marks(text)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular or the plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _answer(envelope: ResultEnvelope, index: int) -> list[str]:
    """Return the lines of one answer, or of the reason why there is none."""
    lines: list[str] = []
    if failure := _failure(envelope, index):
        lines += [f"**{failure.kind}:** {cell(failure.message)} {cell(failure.hint or '')}".rstrip(), ""]
    structured = envelope.structured[index] if envelope.structured else None
    if structured is not None:
        lines += [*_structured(structured), ""]
    elif envelope.answers[index]:
        lines += [*_quote(envelope.answers[index]), ""]
    if reasoning := envelope.reasoning[index] if envelope.reasoning else None:
        # On one line: the UI shows what follows an empty line outside the fold.
        text = "<br>".join(_name_bidi_marks(html.escape(_cut(reasoning))).splitlines())
        lines += [f"<details><summary>Reasoning</summary>{text}</details>", ""]
    finish_reason = (envelope.metrics.get("finish_reasons") or {index: None})[index]
    if finish_reason not in {"stop", None}:
        lines += [f"*finish reason: {finish_reason}*", ""]
    return lines


def _structured(value: Any) -> list[str]:
    """Return a flat object or a list of them as a table, everything else as indented JSON."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if _is_flat(data):
        return _table("Field", "Value", {name: _plain(each) for name, each in data.items()})
    if isinstance(data, list) and data and all(_is_flat(row) and row.keys() == data[0].keys() for row in data):
        lines = ["| " + " | ".join(map(cell, data[0])) + " |", "|" + " --- |" * len(data[0])]
        return [*lines, *("| " + " | ".join(cell(_plain(each)) for each in row.values()) + " |" for row in data)]
    text = _name_bidi_marks(_cut(json.dumps(data, indent=2, ensure_ascii=False)))
    return [f"    {line}" for line in text.splitlines()]


def _is_flat(data: Any) -> bool:
    return isinstance(data, dict) and bool(data) and not any(isinstance(each, dict | list) for each in data.values())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _failures(run_input: RunInput, envelopes: Sequence[ResultEnvelope], advice: str | None) -> list[str]:
    """Return the lines about failed prompts, with advice."""
    failed = [
        (number, failure)
        for number, envelope in enumerate(envelopes)
        for failure in envelope.errors or []
        if failure is not None
    ]
    if not failed:
        return []
    calls = sum(len(envelope.answers) for envelope in envelopes)
    lines = [f"## {len(failed):,} of {count_of(calls, 'prompt')} without an answer", ""]
    for number, failure in failed[:_SHOWN]:
        about = f" · {cell(run_input.sources[number].identifier, 60)}" if len(envelopes) > 1 else ""
        prompt = cell(run_input.prompts[failure.index] or "(sources only)", _LONGEST_HEADING)
        problem = f"{cell(failure.message)} {cell(failure.hint or '')}".rstrip()
        lines.append(f"- {failure.index + 1}{about}: {prompt} — **{failure.kind}:** {problem}")
    if (more := len(failed) - _SHOWN) > 0:
        lines.append(f"- … and {more:,} more")
    hopeless = [failure for _, failure in failed if not failure.retryable and failure.kind != "empty"]
    if hopeless:
        which = "Nothing of this" if len(hopeless) == len(failed) else f"{len(hopeless):,} of these will not"
        verb = " will" if len(hopeless) == len(failed) else ""
        lines += ["", f"**{which}{verb} succeed by a retry alone**: change the input first, as each line says."]
    if len(hopeless) < len(failed):
        lines += ["", f"**Retry** this run. {advice or 'It asks only the prompts without an answer.'}"]
    return [*lines, ""]


def _failure(envelope: ResultEnvelope, index: int) -> CallFailure | None:
    return envelope.errors[index] if envelope.errors else None


def _status(envelopes: Sequence[ResultEnvelope]) -> str:
    found = {envelope.status for envelope in envelopes}
    return "ok" if found <= {"ok"} else "error" if found == {"error"} else "partial"


def _summary(target: Target, envelopes: Sequence[ResultEnvelope], output: str | None) -> list[str]:
    usage = {
        name: sum(envelope.usage.get(name, 0) for envelope in envelopes)
        for name in dict.fromkeys(name for envelope in envelopes for name in envelope.usage)
    }
    rows = {
        **_money(target, envelopes),
        "Calls": f"{sum(len(envelope.answers) for envelope in envelopes):,}",
        "Tokens": ", ".join(f"{count:,} {_name_tokens(name)}" for name, count in usage.items() if count)
        or "not reported",
        "Time": f"{max((envelope.metrics.get('duration_s', 0.0) for envelope in envelopes), default=0.0):.2f} s",
        "Model": f"{target.provider} · {target.model}" + (" · simulated" if target.use_mock else ""),
        **_caching(envelopes),
    }
    if choice := next((each.diagnostics["cache"] for each in envelopes if "cache" in each.diagnostics), None):
        rows["Cache"] = f"{_CACHES[choice['mode']]}: {choice['why']}"
    if output is not None:
        rows["Output"] = output
    return _table("Status", _status(envelopes), rows)


def _name_tokens(name: str) -> str:
    return name.removesuffix("_tokens").replace("cache_write", "written to a cache")


def _money(target: Target, envelopes: Sequence[ResultEnvelope]) -> dict[str, str]:
    metrics = [envelope.metrics for envelope in envelopes]
    cost = total(Cost(each.get("cost_usd"), each.get("cost_unknown")) for each in metrics)
    rows = {"Cost": f"unknown: {cost.unknown}" if cost.usd is None else dollars(cost.usd)}
    if target.use_mock and cost.usd is not None:
        rows["Cost"] += " at list prices; nothing was paid, as it was simulated"
    if reused := sum(each.get("n_reused", 0) for each in metrics):
        saved = total(Cost(each.get("saved_usd")) for each in metrics).usd
        rows["Reused"] = f"{reused:,} not asked again" + ("" if saved is None else f", which saved {dollars(saved)}")
    return rows


def _caching(envelopes: Sequence[ResultEnvelope]) -> dict[str, str]:
    """Return the rows about caches: tokens sent, read and written, storage, and the saving compared with no cache."""
    parts = [part for envelope in envelopes if (part := envelope.metrics.get("caching"))]
    if not parts:
        return {}

    def add(name: str) -> Any:
        numbers = [part[name] for part in parts if name in part]
        return None if None in numbers else sum(numbers)

    metrics = [envelope.metrics for envelope in envelopes]
    sent, naive, saved = add("sent_tokens"), add("naive_tokens"), add("saved_tokens")
    created, naive_usd, saved_usd = add("created_tokens"), add("naive_usd"), add("saved_usd")
    read = sum(each.get("cached_tokens", 0) for each in metrics)
    written = None if created is None else created + sum(each.get("cache_write_tokens", 0) for each in metrics)
    rows = {"Caching": f"{_count(sent)} tokens sent, {read:,} read from cache, {_count(written)} written"}
    if any("storage_usd_per_hour" in part for part in parts):
        an_hour = add("storage_usd_per_hour")
        rows["Storage"] = "unknown" if an_hour is None else f"{dollars(an_hour)} an hour"
        if any("storage_usd" in part for part in parts) and (storage := add("storage_usd")) is not None:
            rows["Storage"] += f", {dollars(storage)} until it ends"
        elif created == 0:
            rows["Storage"] += "; the cache existed before, so its creation and storage are not counted here"
    rows["Saved by caching"] = (
        "unknown" if saved is None else f"{saved:,} of {naive:,} tokens{_percentage(saved, naive)}"
    )
    rows["Saved by caching"] += (
        "; in money: unknown"
        if saved_usd is None
        else f"; in money: {dollars(saved_usd)} of {dollars(naive_usd)}{_percentage(saved_usd, naive_usd)}"
    )
    if reasons := " ".join(dict.fromkeys(part["unknown"] for part in parts if "unknown" in part)):
        rows["Saved by caching"] += f" ({reasons})"
    return rows


def _count(tokens: int | None) -> str:
    return "an unknown number of" if tokens is None else f"{tokens:,}"


def _percentage(part: float, complete: float) -> str:
    return f" ({part / complete:.1%})" if complete else ""


def _conversation(view: ConversationView | None) -> list[str]:
    """Return the last turns of a conversation, with tool calls and their results."""
    if view is None:
        return []
    lines = [f"## Conversation: {cell(view.name, _LONGEST_HEADING)}", ""]
    lines += [f"{count_of(view.exchanges, 'exchange')}. The last turns:", ""]
    for turn in view.last_turns:
        about = "".join(f" · {cell(each.source.identifier, 60)}" for each in turn.attached)
        if turn.content or about:
            who = f"result of {cell(turn.name or 'a tool', 60)}" if turn.role == "tool" else turn.role
            lines.append(f"- **{who}:** {cell(turn.content)}{about}")
        lines += [f"- **call of {cell(call.name, 60)}:** {cell(call.arguments)}" for call in turn.tool_calls]
    tools = [] if not view.tools else ["", f"Tools: {', '.join(cell(each) for each in view.tools)}"]
    return [*lines, *tools, ""]


def _inputs(run_input: RunInput) -> list[str]:
    """Return the lines about the sources and the options of the run."""
    lines: list[str] = []
    if run_input.sources:
        rows = [
            f"| {number} | {cell(source.identifier, _LONGEST_HEADING)} | {cell(source.mime_type, 60)} |"
            for number, source in enumerate(run_input.sources[:_SHOWN], start=1)
        ]
        lines += ["", "## Sources", "", "| | Source | Type |", "| --- | --- | --- |", *rows]
        if (more := len(run_input.sources) - _SHOWN) > 0:
            lines += ["", f"… and {more:,} more."]
    options = run_input.options.model_dump(mode="json", exclude_defaults=True)
    # A conversation is long, and may contain addresses with secrets.
    for name in {"history", "continue_from"} & options.keys():
        options[name] = "of an earlier conversation"
    if options:
        shown = {name.replace("_", " "): _plain(value) for name, value in options.items()}
        lines += ["", "## Options", "", *_table("Option", "Value", shown)]
    return lines


def _warnings(envelopes: Iterable[ResultEnvelope]) -> list[str]:
    warnings = [warning for envelope in envelopes for warning in envelope.diagnostics.get("warnings", [])]
    shown = [f"- {cell(warning)}" for warning in warnings[:_SHOWN]]
    return ["### Warnings", "", *shown, ""] if shown else []


def _table(first: str, second: str, rows: Mapping[str, str]) -> list[str]:
    """Return a table of two columns with this header."""
    return [
        f"| {first} | {second} |",
        "| --- | --- |",
        *(f"| {cell(name)} | {cell(text)} |" for name, text in rows.items()),
        "",
    ]


def _quote(text: str) -> list[str]:
    """Return the lines of a Markdown quotation of a text."""
    return [f"> {line}" for line in inert(_cut(text)).splitlines()]


def _name_bidi_marks(text: str) -> str:
    """Return a text with each character that changes its direction replaced by the character's name."""
    return _BIDI_MARKS.sub(lambda found: f"⟨{unicodedata.name(found[0]).lower()}⟩", text)


def _cut(text: str) -> str:
    if len(text) <= _LONGEST_SHOWN:
        return text
    return text[:_LONGEST_SHOWN] + "\n\n… (cut here; `pollux-flows answers` shows all of it)"
