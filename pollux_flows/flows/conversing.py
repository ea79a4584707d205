"""Conversing: one turn of a stored conversation, from the prompt, through tool calls, to the answer.

Each round asks the model once, through the same tasks as any other prompt, so its answer is in the journal before it
is used. So is the result of each tool. A retry reuses both and continues where the run stopped. The turn is added to
the conversation once, at its end.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from prefect import get_run_logger

from pollux_flows import tasks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import Target
from pollux_flows.errors import BudgetError, ConfigurationError, InternalError, ToolError, raise_if_error
from pollux_flows.flows.answering import Answered, NotAnsweredError, answer_calls, finish
from pollux_flows.flows.restrictions import with_restrictions
from pollux_flows.flows.run_output import RunOutput, prepare_output
from pollux_flows.flows.tools import Tool, call_tool, load_tools
from pollux_flows.options import Options
from pollux_flows.pages import ConversationView, count_of
from pollux_flows.pipeline.conversation import VERSION, with_results
from pollux_flows.pipeline.terms import SharedBudget, Terms
from pollux_flows.pricing import Cost, total
from pollux_flows.result import STATE, Outcome, ResultEnvelope
from pollux_flows.scope import lineage
from pollux_flows.source import Source
from pollux_flows.state import conversations
from pollux_flows.state.conversations import Exchange, RunRecords, StoredConversation, lease_conversation
from pollux_flows.state.identity import digest
from pollux_flows.state.store import Store, open_store
from pollux_flows.turn import read_turns

_NEW: Final = "conversation-{}"
_NEW_NAME: Final = re.compile(r"conversation-[0-9a-f]{12}")
_SHOWN_TURNS: Final = 12
_TOO_LONG: Final = (
    "The conversation and this prompt are longer than the model's context. Begin another conversation, with a summary "
    "of this one as its first prompt, or go on with a model that has a larger context."
)


@with_restrictions
async def answer_turn(
    prompt: str,
    provider: PolluxProvider,
    conversation: str | None,
    sources: Sequence[Source],
    options: Options | None,
    *,
    tools: Sequence[str],
    max_rounds: int,
    tool_timeout_s: float,
    max_cost_usd: float | None,
    budget: SharedBudget | None,
    output: str | None,
) -> ResultEnvelope:
    """Answer one prompt in a conversation, add the exchange to it, and return the envelope of the answer."""
    options = options or Options()
    _check(options, max_rounds, tool_timeout_s)
    name = None if conversation is None else conversations.normalize_name(conversation)
    here = await lineage()
    if here is None:
        raise InternalError("answer_turn was called outside a flow run.")
    if here.is_deep:
        raise ConfigurationError(
            "converse cannot run within a task or a sub-flow: a retry finds saved answers by their prompts, and could "
            "not tell two equal turns apart.",
            hint="Call converse in the outermost flow itself; aconverse with asyncio.gather runs several. Or start its "
            "deployment with run_deployment(…, as_subflow=False).",
        )
    store = open_store()
    turn = _Turn(
        prompt,
        provider,
        (await provider.config()).target,
        name,
        sources,
        options,
        {tool.name: tool for tool in load_tools(tools)},
        tool_timeout_s,
        max_cost_usd,
        budget,
        await prepare_output("converse", output),
        store,
        RunRecords(store, here.scope.run),
    )
    if name is None:  # no other run knows of it yet
        return await turn.answer(max_rounds)
    async with lease_conversation(store, name, f"run {here.flow_run.name}", _log_waiting):
        return await turn.answer(max_rounds)


def _check(options: Options, max_rounds: int, tool_timeout_s: float) -> None:
    if options.history is not None or options.continue_from is not None:
        raise ConfigurationError(
            "The options have a history, and a stored conversation has its own.",
            hint="Leave history and continue_from out of the options, or use the flow realtime.",
        )
    if options.tools is not None:
        raise ConfigurationError(
            "The options declare tools, which converse cannot run.",
            hint='Pass the functions: tools=["my_package.tools:get_weather"]; or use continue_tool.',
        )
    if max_rounds < 1:
        raise ConfigurationError(f"max_rounds is {max_rounds}.", hint="Pass 1 or more, or leave it out for 10.")
    if not 0 < tool_timeout_s < math.inf:
        raise ConfigurationError(
            f"tool_timeout_s is {tool_timeout_s}.", hint="Pass a number of seconds, or leave it out for 300."
        )


def _log_waiting(owner: str) -> None:
    get_run_logger().info("Another run uses this conversation (%s): waiting for it to end.", owner)


@dataclass
class _Turn:
    """One prompt of a conversation, with the rounds that it took so far."""

    prompt: str
    provider: PolluxProvider
    target: Target
    name: str | None
    sources: Sequence[Source]
    options: Options
    tools: Mapping[str, Tool]
    tool_timeout_s: float
    max_cost_usd: float | None
    budget: SharedBudget | None
    output: RunOutput | None
    store: Store
    records: RunRecords
    rounds: list[ResultEnvelope] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    async def answer(self, max_rounds: int) -> ResultEnvelope:
        """Reuse the answer of an earlier attempt of the run, or ask; then run tools until the model answers."""
        stored, found = await self._load(), None
        base = 0
        for base in await self._bases(stored):
            try:
                found = await self._ask([self.prompt], self.sources, self._after(stored, base), reused_only=True)
            except NotAnsweredError:
                continue
            break
        if found is None:
            base = len(stored.exchanges) if stored else 0
            if self.name is not None:
                await self.records.add_base(self.name, self.prompt, base)
            found = await self._ask([self.prompt], self.sources, self._after(stored, base))
        first, answered, envelope = found, found, await self._extract(found)
        for number in range(max_rounds + 1):
            if not envelope.tool_calls or envelope.errors:
                break
            if number == max_rounds:
                raise ToolError(
                    f"The model has called tools {count_of(max_rounds, 'time')} and has not answered yet.",
                    hint="Raise max_rounds, or say in the prompt or in the results of the tools when to stop. The"
                    " conversation was not changed.",
                )
            results = await self._run_tools(answered.outcomes[0].identity, envelope.tool_calls[0])
            answered = await self._ask([None], (), with_results(envelope, results))
            envelope = await self._extract(answered)
        envelope = _join_rounds(self.rounds)
        if not envelope.errors:
            stored = await self._append(base, first, envelope)
            envelope = envelope.model_copy(update={"conversation": stored.name})
        view = None if stored is None else self._view(stored)
        run_input = replace(first.run_input, options=self.options, conversation=view)
        await finish(run_input, [envelope], "fail", output=self.output, advice=answered.retry_advice)
        return envelope

    async def _load(self) -> StoredConversation | None:
        """Return the stored conversation, or None for a new one."""
        log = get_run_logger()
        if self.name is None:
            return None
        stored = await conversations.load_conversation(self.store, self.name)
        if stored is not None:
            conversations.check_size(self.store, stored)
            last = f"{datetime.fromtimestamp(stored.exchanges[-1].at, UTC):%Y-%m-%d %H:%M} UTC"
            count = count_of(len(stored.exchanges), "exchange")
            log.info("Continuing the conversation %r: %s, the last on %s.", self.name, count, last)
        elif _NEW_NAME.fullmatch(self.name) and not await self.records.load_bases(self.name, self.prompt):
            raise ConfigurationError(
                f"There is no conversation {self.name!r} in {self.store.where}: it was deleted, has expired, or is in"
                " another state.",
                hint="`pollux-flows conversations` lists the stored ones. Leave the name out to begin another.",
            )
        else:
            log.info("Beginning the conversation %r.", self.name)
        return stored

    async def _bases(self, stored: StoredConversation | None) -> list[int]:
        """Return the lengths, shorter than now, that the conversation had when earlier attempts of this run asked."""
        if self.name is None or stored is None:
            return []
        bases = await self.records.load_bases(self.name, self.prompt)
        return [base for base in bases if base < len(stored.exchanges)]

    def _after(self, stored: StoredConversation | None, base: int) -> Mapping[str, Any]:
        """Return the state to continue from: the first `base` exchanges of the conversation."""
        turns, response_id = [], None
        if stored is not None and base > 0:
            turns = stored.turns_for(self.target, base)
            response_id = stored.response_id_for(self.target, base)
            last = stored.exchanges[base - 1]
            if not last.is_by(self.target):
                get_run_logger().info(
                    "The last answer was by %s %s%s: only its text is sent, as this model cannot read the rest.",
                    last.provider,
                    last.model,
                    " in the simulator" if last.use_mock else "" if last.base_url is None else f" at {last.base_url}",
                )
        known = {} if response_id is None else {"response_id": response_id}
        return {STATE: {"version": VERSION, "provider": self.target.provider, "history": turns, **known}}

    async def _ask(
        self,
        prompts: Sequence[str | None],
        sources: Sequence[Source],
        after: Mapping[str, Any],
        *,
        reused_only: bool = False,
    ) -> Answered:
        """Ask the model once."""
        spent = sum(each.paid_usd for each in self.outcomes if each.counted_in is None)
        unknown = next((each.cost_unknown for each in self.outcomes if each.cost_unknown), None)
        if (self.max_cost_usd is not None or self.budget is not None) and unknown is not None:
            raise BudgetError(
                f"Not asked, as the budget can no longer be enforced. {unknown}",
                hint="Leave the budget out and run again.",
            )
        declared = [tool.declaration for tool in self.tools.values()] or None
        options = self.options.model_copy(update={"continue_from": dict(after), "tools": declared})
        terms = Terms(max_cost_usd=self.max_cost_usd, budget=self.budget, spent_usd=spent)
        answered = await answer_calls(
            "converse", prompts, self.provider, sources, options, terms=terms, reused_only=reused_only
        )
        if after[STATE]["history"]:
            answered = answered._replace(outcomes=[_explain_overflow(each) for each in answered.outcomes])
        self.outcomes += answered.outcomes
        return answered

    async def _extract(self, answered: Answered) -> ResultEnvelope:
        envelope = await tasks.extract(*answered.extract_input(self.provider))
        self.rounds.append(envelope)
        return envelope

    async def _run_tools(self, answer: str, calls: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """Return the results of the tool calls of one answer. All are run before the first error is raised."""
        found = await asyncio.gather(*(self._run_tool(answer, call) for call in calls), return_exceptions=True)
        return [
            {"tool_call_id": call["id"], "content": raise_if_error(content)}
            for call, content in zip(calls, found, strict=True)
        ]

    async def _run_tool(self, answer: str, call: Mapping[str, str]) -> str:
        saved = await self.records.load_tool_result(answer, call)
        if saved is not None:
            return saved
        tool = self.tools.get(call["name"])
        if tool is None:
            return f"There is no tool {call['name']!r}. The tools are {', '.join(self.tools)}."
        if (problem := tool.find_problem(call["arguments"])) is not None:
            return problem
        content = await call_tool(tool.import_string, call["arguments"], self.tool_timeout_s)
        await self.records.save_tool_result(answer, call, content)
        return content

    async def _append(self, base: int, first: Answered, envelope: ResultEnvelope) -> StoredConversation:
        """Add the exchange to the conversation, unless an earlier attempt has added it."""
        state = envelope.conversation_state
        if state is None:
            raise InternalError("The envelope of a turn has no conversation state.")
        call = first.outcomes[0].identity
        exchange = Exchange(
            run=self.records.run,
            call=call,
            at=time.time(),
            base=base,
            **dict(self.target),
            turns=state["history"][len(first.plan.history.turns) :],
            response_id=state.get("response_id"),
        )
        # A new name is derived from the run and its call, so that a retry finds the conversation that it began.
        name = self.name or _NEW.format(digest("conversation-name", [self.records.run, call])[:12])
        if self.name is None:
            get_run_logger().info("The conversation is named %s: continue it with conversation=%r.", name, name)
        return await conversations.append_exchange(self.store, name, exchange)

    def _view(self, stored: StoredConversation) -> ConversationView:
        items = [turn for each in stored.exchanges for turn in each.turns]
        return ConversationView(
            stored.name,
            len(stored.exchanges),
            read_turns(items[-_SHOWN_TURNS:], f"the conversation {stored.name!r}"),
            [tool.import_string for tool in self.tools.values()],
        )


def _explain_overflow(outcome: Outcome) -> Outcome:
    """Return the outcome with a hint about conversations, if it failed because the context is too long."""
    failure = outcome.failure
    if failure is None or failure.error_category != "context_overflow":
        return outcome
    return outcome.model_copy(update={"failure": failure.model_copy(update={"hint": _TOO_LONG})})


def _join_rounds(rounds: Sequence[ResultEnvelope]) -> ResultEnvelope:
    """Return the envelope of the last round, with the sums of the numbers of all rounds."""
    if len(rounds) == 1:
        return rounds[0]
    last, metrics = rounds[-1], [each.metrics for each in rounds]
    cost = total(Cost(each.get("cost_usd"), each.get("cost_unknown")) for each in metrics)
    saved = total(Cost(each.get("saved_usd")) for each in metrics)
    counted = {
        **last.metrics,
        "n_calls": len(rounds),
        "n_reused": sum(each["n_reused"] for each in metrics),
        "duration_s": round(sum(each["duration_s"] for each in metrics), 3),
        "cost_usd": cost.usd,
        "saved_usd": saved.usd,
        **({} if cost.unknown is None else {"cost_unknown": cost.unknown}),
    }
    if "caching" in counted:
        parts = [each.get("caching", {}) for each in metrics]
        counted["caching"] = {name: _add([part.get(name) for part in parts]) for name in counted["caching"]}
    names = dict.fromkeys(name for each in rounds for name in each.usage)
    joined = {
        name: [item for each in rounds for item in each.diagnostics.get(name, [])]
        for name in ("raw_responses", "calls", "warnings")
    }
    return last.model_copy(
        update={
            "usage": {name: sum(each.usage.get(name, 0) for each in rounds) for name in names},
            "metrics": counted,
            "diagnostics": {**last.diagnostics, **joined},
        }
    )


def _add(values: Sequence[Any]) -> Any:
    """Return the sum of numbers, or None if one is unknown; of other values, return the last."""
    if not isinstance(values[-1], int | float):
        return values[-1]
    return None if any(value is None for value in values) else sum(values)
