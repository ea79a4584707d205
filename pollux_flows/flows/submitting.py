"""Submitting: the way of deferred work to its provider, which three flows take."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import get_run_logger, task

from pollux_flows import events, tasks
from pollux_flows.blocks.provider import PolluxProvider
from pollux_flows.config import KEY_VARIABLES, Config, from_environment
from pollux_flows.deferred.book import Asked, BusyError, no_such_job
from pollux_flows.deferred.job import Job, OnLost
from pollux_flows.deferred.keep import check_output, without_answer
from pollux_flows.deferred.resubmit import again, with_child
from pollux_flows.deferred.submit import check, check_finished, claim, hand_in_first
from pollux_flows.errors import ConfigurationError
from pollux_flows.flows.answering import whole
from pollux_flows.jobs import pages
from pollux_flows.jobs.book import BlockBook
from pollux_flows.jobs.configs import Configs
from pollux_flows.jobs.shelf import ResultShelf
from pollux_flows.options import Options
from pollux_flows.providers.session import open_session
from pollux_flows.scope import run_key
from pollux_flows.source import Source
from pollux_flows.state.identity import digest
from pollux_flows.tasks import UNSTORED


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
    if resubmit < 0:
        raise ConfigurationError(f"resubmit is {resubmit}.", hint="Pass 0, or how often what failed is tried again.")
    if output is not None:
        check_output(output)
    config = await provider.config()
    asked = await tasks.request(whole(prompts), config.target, whole(sources), options)
    check(asked)
    plan = await tasks.plan(whole(asked))
    if provider.name is None:
        _warn_of_a_lost_key(config)
    # The place in the run is part of the name: a retry finds what an earlier attempt has handed in.
    name = f"{config.provider}-{digest('deferred', await run_key(plan))[:12]}"
    book = BlockBook(await ResultShelf.open())

    async def hand_in() -> Job:
        async with open_session(config) as session:
            await check_finished(session, plan)
            job = await claim(
                book,
                name,
                Asked(request=asked, contents=plan.contents),
                plan,
                provider_block=provider.name,
                output=output,
                resubmit=resubmit,
                on_lost=on_lost,
            )
            return await hand_in_first(book, job, session, plan)

    # What it needs, a key among it, stays in this process: a task's arguments would not.
    job = await task(name="submit", task_run_name=f"submit {name}", **UNSTORED)(hand_in)()
    await pages.leave_submission(job)
    await events.tell("submitted", job)
    get_run_logger().info("Handed in as the job %s: %s.", job.name, job.state)
    return job


async def submit_again(name: str) -> str:
    """Hand in what did not succeed of a collected job, or what the provider did not have of an ambiguous one."""
    book = BlockBook(await ResultShelf.open())
    try:
        async with book.alone(name) as hold:
            job = hold.job
            if job.state == "ambiguous":
                parts = [part.again() if part.state == "lost" else part for part in job.parts]
                await hold.save(job.with_parts(parts))
            elif job.manifest is None:
                raise ConfigurationError(f"{name} is not collected yet.", hint="Collect it first, or wait for it.")
            elif job.child is None:
                if not (indexes := await without_answer(book.shelf, name)):
                    raise ConfigurationError(
                        f"All prompts of {name} have their answer.", hint="There is nothing to do."
                    )
                await hold.save(with_child(job, await again(job, book, indexes)))
            name = hold.job.child or name
    except BusyError:
        raise ConfigurationError(f"Somebody is at work on {name} just now.", hint="Try again in a moment.") from None
    job = await _found(book, name)

    async def hand_in() -> Job:
        async with open_session(await Configs().of(job)) as session:
            return await hand_in_first(book, job, session, (await book.asked(name)).plan(job))

    job = await task(name="submit", task_run_name=f"submit {name}", **UNSTORED)(hand_in)()
    await pages.leave_submission(job)
    await events.tell("submitted", job)
    return name


async def _found(book: BlockBook, name: str) -> Job:
    if (job := await book.find(name)) is None:
        raise no_such_job(name, "this Prefect server")
    return job


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
