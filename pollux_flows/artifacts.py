"""Artifacts: the pages that a run publishes for people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from prefect import get_run_logger
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from pollux_flows.blocks.cache import format_time
from pollux_flows.caching.worth import price_cache
from pollux_flows.config import Target
from pollux_flows.pipeline.caches import CacheRecord
from pollux_flows.pricing import Cost, dollars, total
from pollux_flows.result import ResultEnvelope, SweepReport
from pollux_flows.source import Source

_CACHES: Final = {"explicit": "created", "warm": "the first prompt writes it", "none": "none"}
_PROGRESS_EVERY_S: Final = 2.0
# A page that a browser still opens; the whole envelope is the run's result.
_SHOWN: Final = 50
_LONGEST_SHOWN: Final = 4000
_LONGEST_CELL: Final = 300


@asynccontextmanager
async def not_worth_an_answer() -> AsyncIterator[None]:
    """Publish best effort: where a page cannot be published, the run logs that and goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (whatever the server or the network did)
        get_run_logger().warning("An artifact could not be left (%s); the answers are in the result.", error)


async def leave_answers(kind: str, prompts: Sequence[str | None], target: Target, envelope: ResultEnvelope) -> None:
    """One page: what was asked, what was answered, what it took."""
    async with not_worth_an_answer():
        await acreate_markdown_artifact(
            markdown=answers_page(prompts, target, envelope),
            key=f"pollux-{kind}",
            description=_headline(len(prompts), target, [envelope]),
        )


async def leave_grid(
    prompts: Sequence[str | None],
    sources: Sequence[Source],
    target: Target,
    envelopes: Sequence[ResultEnvelope],
) -> None:
    """One page: a row a source, a column a prompt."""
    async with not_worth_an_answer():
        await acreate_markdown_artifact(
            markdown=grid_page(prompts, sources, target, envelopes),
            key="pollux-broadcast",
            description=_headline(len(prompts) * len(sources), target, envelopes),
        )


async def publish_cache(name: str, record: CacheRecord) -> None:
    """Publish a page about a cache: what is in it, how large it is, what it costs and when it pays."""
    async with not_worth_an_answer():
        await acreate_markdown_artifact(
            markdown=cache_page(record),
            key=name,
            description=f"{record.target.model}: {', '.join(record.contents)}",
        )


def cache_page(record: CacheRecord) -> str:
    """Return the Markdown of `publish_cache`."""
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
    contents = [f"- {cell(each)}" for each in record.contents]
    return "\n".join(
        ["| | |", "| --- | --- |", *(f"| {title} | {cell(text)} |" for title, text in rows.items()), "", *contents]
    )


async def leave_sweep(report: SweepReport) -> None:
    """A row for each file that was removed, or should have been."""
    rows = [{"provider": file.provider, "file": file.file_id, "now": "removed"} for file in report.removed]
    rows += [
        {"provider": file.provider, "file": file.file_id, "now": f"still there: {file.why}"} for file in report.left
    ]
    rows += [{"provider": "", "file": cache, "now": "removed"} for cache in report.caches]
    rows += [{"provider": "", "file": "", "now": problem} for problem in [*report.unusable, *report.unreadable]]
    await acreate_table_artifact(
        table=rows,
        key="pollux-sweep",
        description=f"{len(report.removed) + len(report.caches)} removed, {len(report.left)} still there",
    )


@asynccontextmanager
async def progress(total: int, description: str) -> AsyncIterator[Callable[[int], None]]:
    """A progress bar in the UI for what takes longer than a moment. Tell what it yields of steps that are done."""
    done = 0

    def count(steps: int) -> None:
        nonlocal done
        done += steps

    async def show() -> None:
        await asyncio.sleep(_PROGRESS_EVERY_S)
        async with not_worth_an_answer():
            bar = await acreate_progress_artifact(
                progress=_percent(done, total), description=f"{description}, of {total}"
            )
            try:
                while True:
                    await asyncio.sleep(_PROGRESS_EVERY_S)
                    await aupdate_progress_artifact(bar, progress=_percent(done, total))
            finally:
                await asyncio.shield(aupdate_progress_artifact(bar, progress=_percent(done, total)))

    shown = asyncio.create_task(show())
    try:
        yield count
    finally:
        shown.cancel()
        with suppress(asyncio.CancelledError):
            await shown


def answers_page(prompts: Sequence[str | None], target: Target, envelope: ResultEnvelope) -> str:
    """The Markdown of `leave_answers`."""
    return "\n".join([*_summary(target, [envelope]), *answered(prompts, envelope)])


def answered(prompts: Sequence[str | None], envelope: ResultEnvelope) -> list[str]:
    """The first prompts with their answers, and all that went wrong."""
    lines: list[str] = []
    finish_reasons = envelope.metrics.get("finish_reasons", [])
    for index, prompt in list(enumerate(prompts))[:_SHOWN]:
        failure = envelope.errors[index] if envelope.errors else None
        lines += [f"## {index + 1}. {cell(prompt or '(sources only)', 80)}", ""]
        if prompt and len(prompt) > 80:  # noqa: PLR2004 (what the heading shows of it)
            lines += [_quoted(prompt), ""]
        if failure is not None:
            lines += [f"**{failure.kind}:** {cell(failure.message)} {cell(failure.hint or '')}", ""]
        if envelope.answers[index]:
            lines += [_quoted(envelope.answers[index]), ""]
        if finish_reasons[index] not in {"stop", None}:
            lines += [f"*finish reason: {finish_reasons[index]}*", ""]
    if len(prompts) > _SHOWN:
        lines += [f"… and {len(prompts) - _SHOWN} more.", "", *_failed(envelope)]
    return [*lines, *_warned([envelope])]


def grid_page(
    prompts: Sequence[str | None],
    sources: Sequence[Source],
    target: Target,
    envelopes: Sequence[ResultEnvelope],
) -> str:
    """The Markdown of `leave_grid`."""
    header = ["Source", *(cell(prompt or "(no prompt)", 80) for prompt in prompts)]
    lines = [*_summary(target, envelopes), "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for source, envelope in list(zip(sources, envelopes, strict=True))[:_SHOWN]:
        cells = [
            cell(answer) if envelope.errors is None or (failure := envelope.errors[index]) is None
            else f"**{failure.kind}:** {cell(failure.message)}"
            for index, answer in enumerate(envelope.answers)
        ]  # fmt: skip
        lines.append("| " + " | ".join([cell(source.identifier, 60), *cells]) + " |")
    if len(sources) > _SHOWN:
        lines += ["", f"… and {len(sources) - _SHOWN} more sources, in the result of this run."]
    lines += ["", *_warned(envelopes)]
    return "\n".join(lines)


def _headline(calls: int, target: Target, envelopes: Sequence[ResultEnvelope]) -> str:
    return f"{target.model}: {calls} call{'' if calls == 1 else 's'}, {_status(envelopes)}"


def _status(envelopes: Sequence[ResultEnvelope]) -> str:
    found = {envelope.status for envelope in envelopes}
    return "ok" if found <= {"ok"} else "error" if found == {"error"} else "partial"


def _summary(target: Target, envelopes: Sequence[ResultEnvelope]) -> list[str]:
    usage = {
        name: sum(envelope.usage.get(name, 0) for envelope in envelopes)
        for name in dict.fromkeys(name for envelope in envelopes for name in envelope.usage)
    }
    rows = {
        "Model": f"{target.provider} · {target.model}" + (" · simulated" if target.use_mock else ""),
        "Calls": f"{sum(len(envelope.answers) for envelope in envelopes):,}",
        "Time": f"{max((envelope.metrics.get('duration_s', 0.0) for envelope in envelopes), default=0.0):.2f} s",
        "Tokens": ", ".join(f"{count:,} {name.removesuffix('_tokens')}" for name, count in usage.items())
        or "not reported",
        **_caching(envelopes),
        **_money(target, envelopes),
    }
    if choice := next((each.diagnostics["cache"] for each in envelopes if "cache" in each.diagnostics), None):
        rows["Cache"] = f"{_CACHES[choice['mode']]}: {choice['why']}"
    return [
        f"| Status | {_status(envelopes)} |",
        "| --- | --- |",
        *(f"| {name} | {cell(value)} |" for name, value in rows.items()),
        "",
    ]


def _caching(envelopes: Sequence[ResultEnvelope]) -> dict[str, str]:
    """Return the rows about caches: tokens sent, read and written, storage, and the saving against the naive way."""
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
            rows["Storage"] += "; the cache was there before, and its creation and storage are not counted here"
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


def _percentage(part: float, whole: float) -> str:
    return f" ({part / whole:.1%})" if whole else ""


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


def _failed(envelope: ResultEnvelope) -> list[str]:
    """The prompts without an answer among those that are not shown."""
    failures = [each for each in (envelope.errors or [])[_SHOWN:] if each is not None]
    shown = [f"- {each.index + 1}. **{each.kind}:** {cell(each.message)}" for each in failures[:_SHOWN]]
    more = [f"- … and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
    return ["### Not answered either", "", *shown, *more, ""] if failures else []


def _warned(envelopes: Sequence[ResultEnvelope]) -> list[str]:
    warnings = [warning for envelope in envelopes for warning in envelope.diagnostics.get("warnings", [])]
    shown = [f"- {cell(warning)}" for warning in warnings[:_SHOWN]]
    return ["### Warnings", "", *shown, ""] if shown else []


def _quoted(text: str) -> str:
    """Quote a text, so that no Markdown in it takes effect outside the quotation."""
    if len(text) > _LONGEST_SHOWN:
        text = text[:_LONGEST_SHOWN] + "\n\n… (cut here; the run's result has all of it)"
    return "\n".join(f"> {line}" for line in _inert(text).splitlines())


def cell(text: str, longest: int = _LONGEST_CELL) -> str:
    """On one line, and without what would end a table's cell."""
    line = " ".join(text.split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return _inert(line.replace("\\", "\\\\")).replace("|", "\\|")


def _inert(text: str) -> str:
    """Without HTML, and without images, which a browser would fetch from wherever an answer says."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "!\\[")


def _percent(done: int, total: int) -> float:
    return 100.0 * done / total if total else 100.0
