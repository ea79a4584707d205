"""Submitting: the way of deferred work to its provider, which three flows take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect import get_run_logger, task

from pollux_flows import tasks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import KEY_VARIABLES, Config, from_environment
from pollux_flows.deferred.book import Asked, BusyError, Hold
from pollux_flows.deferred.job import Job, OnLost
from pollux_flows.deferred.keep import without_answer
from pollux_flows.deferred.output import checked_output
from pollux_flows.deferred.resubmit import again, with_child
from pollux_flows.deferred.submit import check, check_finished, claim, hand_in_first, settle
from pollux_flows.errors import ConfigurationError
from pollux_flows.flows.answering import whole
from pollux_flows.flows.limits import under_limits
from pollux_flows.jobs import pages
from pollux_flows.jobs.book import BlockBook
from pollux_flows.jobs.configs import Configs
from pollux_flows.jobs.shelf import ResultShelf
from pollux_flows.jobs.telling import tell_of_submission, was_told
from pollux_flows.options import Options
from pollux_flows.pipeline.plan import Plan
from pollux_flows.providers.session import open_session
from pollux_flows.scope import run_key
from pollux_flows.source import Source
from pollux_flows.state.identity import digest
from pollux_flows.tasks import UNSTORED


@under_limits
async def submit_job(
    prompts: Sequence[str | None],
    provider: PolluxProvider,
    sources: Sequence[Source],
    options: Options | None,
    *,
    output: str | None = None,
    resubmit: int = 0,
    on_lost: OnLost = "submit",
) -> Job:
    """Hand the work in, once for this run however often it is tried."""
    book = BlockBook(await ResultShelf.open())
    # Named after the run: a retry of it, or its resumption a week later, finds what was handed in, and reads nothing.
    name = f"deferred-{digest('deferred', await run_key())[:12]}"
    job = await book.find(name)
    if job is None:
        asking = _Asking(prompts, sources, options, output, resubmit, on_lost)
        config = await provider.config()
        plan = await _claimed(book, name, provider.name, config, asking)
        return await _handed_in(book, name, config, plan)
    if job.is_handed_in or job.manifest is not None:
        return job
    return await _handed_in(book, name, await (Configs().of(job) if job.provider_block else provider.config()))


async def submit_again(name: str) -> str:
    """Hand in what did not succeed of a collected job, or what the provider did not have of an ambiguous one."""
    book = BlockBook(await ResultShelf.open())
    try:
        async with book.alone(name) as hold:
            job = hold.job
            if job.state == "ambiguous":
                async with open_session(await Configs().of(job)) as session:
                    await settle(hold, session, lost=True)  # by now a list may show it, or what may be it
                parts = [part.again() if part.state == "lost" else part for part in hold.job.parts]
                await hold.save(hold.job.with_parts(parts))
            elif job.manifest is None:
                raise ConfigurationError(f"{name} is not collected yet.", hint="Collect it first, or wait for it.")
            elif job.child is None:
                if not (indexes := await without_answer(book.shelf, job)):
                    raise ConfigurationError(f"All prompts of {name} have their answer.", hint="Nothing is left to do.")
                config = await Configs().of(job)
                await hold.save(with_child(job, await again(job, book, indexes, config.key())))
            name = hold.job.child or name
    except BusyError:
        raise ConfigurationError(f"Somebody is at work on {name} just now.", hint="Try again in a moment.") from None
    return (await _handed_in(book, name, await Configs().of(await book.get(name)))).name


@dataclass(frozen=True)
class _Asking:
    prompts: Sequence[str | None]
    sources: Sequence[Source]
    options: Options | None
    output: str | None
    resubmit: int
    on_lost: OnLost


async def _claimed(book: BlockBook, name: str, saved: str | None, config: Config, asking: _Asking) -> Plan:
    """What is asked, after all that can be refused was looked at and the job was written down. Nothing is sent yet."""
    if asking.resubmit < 0:
        raise ConfigurationError(
            f"resubmit is {asking.resubmit}.", hint="Pass 0, or how often what failed is tried again."
        )
    output = None if asking.output is None else checked_output(asking.output)
    asked = await tasks.request(whole(asking.prompts), config.target, whole(asking.sources), asking.options)
    check(asked)
    plan = await tasks.plan(whole(asked))
    async with open_session(config) as session:
        await check_finished(session, plan)
    if saved is None:
        _warn_of_a_lost_key(config)
    await claim(
        book,
        name,
        Asked.by(asked, plan.contents),
        plan,
        config.key(),
        provider_block=saved,
        output=output,
        resubmit=asking.resubmit,
        on_lost=asking.on_lost,
    )
    return plan


async def _handed_in(book: BlockBook, name: str, config: Config, plan: Plan | None = None) -> Job:
    """The job, after whatever is left of it was handed in."""

    async def hand_in() -> Job:
        async with open_session(config) as session:
            return await hand_in_first(book, name, session, plan, _told)

    # What it needs, a key among it, stays in this process: a task's arguments would not.
    job = await task(name="submit", task_run_name=f"submit {name}", **UNSTORED)(hand_in)()
    get_run_logger().info("The job %s is %s.", job.name, job.state)
    return job


async def _told(hold: Hold) -> None:
    if not was_told(hold.job, "submitted"):
        await pages.leave_submission(hold.job)
    await tell_of_submission(hold)


def _warn_of_a_lost_key(config: Config) -> None:
    """A key that only this process knows will not be there when the answers are collected."""
    if config.use_mock:
        return
    variable = KEY_VARIABLES[config.provider]
    if from_environment(variable) is None:
        get_run_logger().warning(
            "The provider was never saved, so whoever collects this job will look for %s in the environment. "
            "Save it: PolluxProvider(…).save('a-name').",
            variable,
        )
