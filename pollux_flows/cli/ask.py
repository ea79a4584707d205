"""pollux-flows run and submit: ask prompts from a shell."""

from __future__ import annotations

import asyncio
import json as json_format
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from pollux_flows import flows
from pollux_flows.blocks import PolluxProvider
from pollux_flows.cli.console import shorten_log, show_run
from pollux_flows.cli.printing import Json, refusals_in_words, say
from pollux_flows.errors import ConfigurationError, PolluxError
from pollux_flows.flows.prompts import is_table, read_prompts
from pollux_flows.options import Options
from pollux_flows.pipeline.terms import Reuse
from pollux_flows.result import ResultEnvelope
from pollux_flows.source import Source

_STDIN: Final = "-"

Provider = Annotated[str, Parameter(("--provider", "-p"), help="The name of the saved PolluxProvider to ask.")]
Prompts = Annotated[
    str | None,
    Parameter(
        "--prompts",
        help="A file with one prompt per line, a .json file with a list, or a .jsonl or .csv file; a # names its "
        "column, as in questions.csv#question; - reads standard input.",
        allow_leading_hyphen=True,
    ),
]
Sources = Annotated[
    list[str] | None,
    Parameter(
        ("--source", "-s"),
        help="A source that the prompts are about: a file, an address (https://, s3:// …), a YouTube link, or "
        "arxiv:ID. Can be repeated.",
    ),
]
System = Annotated[str | None, Parameter(help="Instructions for the model (the system prompt).")]
Schema = Annotated[
    str | None,
    Parameter(
        help="The structure of the answers: a .json file with a JSON Schema, or a class such as my_pkg.models:Invoice."
    ),
]
MaxTokens = Annotated[int | None, Parameter(help="The most tokens that an answer may have.")]
Output = Annotated[
    str | None,
    Parameter(help="A file that the answers are also written to: .jsonl or .csv, or a folder ending in /."),
]


def run(
    *prompt: Annotated[str, Parameter(help="The prompts, each in quotes.")],
    provider: Provider,
    prompts: Prompts = None,
    sources: Sources = None,
    system: System = None,
    schema: Schema = None,
    reuse: Annotated[
        Reuse,
        Parameter(help="Which stored answers to reuse: those of this run (run), of any run (always), none (never)."),
    ] = "run",
    max_cost_usd: Annotated[
        float | None,
        Parameter(help="The most that the answers may cost, in US dollars. A call is made only if it is sure to fit."),
    ] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Ask prompts and print the answers, as a run of the flow `fan-out`."""
    with refusals_in_words():
        asked = read_prompt_arguments(prompt, prompts)
        options = read_options(system, schema)
        block = asyncio.run(load_provider(provider))
        about = read_sources(sources)
        try:
            with show_run():
                envelope = flows.fan_out(
                    asked, block, about, options, output=output, reuse=reuse, max_cost_usd=max_cost_usd
                )
        except PolluxError as error:
            if error.envelope is not None:
                _print(asked, error.envelope, json=json)
            raise
        _print(asked, envelope, json=json)


def submit(
    *prompt: Annotated[str, Parameter(help="The prompts, each in quotes.")],
    provider: Provider,
    prompts: Prompts = None,
    sources: Sources = None,
    system: System = None,
    schema: Schema = None,
    output: Output = None,
    resubmit: Annotated[int, Parameter(help="How many times to submit failed prompts again.")] = 0,
) -> None:
    """Submit prompts as a batch, and print the name of the job."""
    with refusals_in_words():
        asked = read_prompt_arguments(prompt, prompts)
        options = read_options(system, schema)
        block = asyncio.run(load_provider(provider))
        about = read_sources(sources)
        with shorten_log():
            job = flows.submit(asked, block, about, options, output=output, resubmit=resubmit)
        say(job)


async def load_provider(name: str) -> PolluxProvider:
    """Return the saved provider. Raises, before a run is started, if it cannot be used here."""
    provider = await PolluxProvider.named(name)
    await provider.config()
    return provider


def read_prompt_arguments(words: Sequence[str], file: str | None) -> list[str]:
    """Return the prompts of a command: its arguments, or those in the file that it names."""
    if bool(words) == (file is not None):
        problem = "There are prompts and a file with prompts." if words else "There is no prompt."
        raise ConfigurationError(problem, hint="Write prompts, or name a file with --prompts.")
    return list(words) if file is None else _read(file)


def _read(file: str) -> list[str]:
    if is_table(file):
        return [prompt or "" for prompt in asyncio.run(read_prompts((), file))]
    try:
        text = sys.stdin.read() if file == _STDIN else Path(file).read_text(encoding="utf-8")
        if not file.endswith(".json"):
            return [line for line in text.splitlines() if line.strip()]
        found = json_format.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error}",
            hint="Name a text file with one prompt per line, or a .json file with a list.",
        ) from None
    if not isinstance(found, list) or not all(isinstance(prompt, str) for prompt in found):
        raise ConfigurationError(
            f"{file} is not a list of prompts.",
            hint='Write ["one", "two"], or one prompt per line in a file of another type.',
        )
    return found


def read_sources(names: Sequence[str] | None) -> list[Source]:
    """Return the sources that are named on the command line."""
    return [_source(each) for each in names or ()]


def _source(name: str) -> Source:
    kind, _, rest = name.partition(":")
    if kind == "arxiv":
        return Source.from_arxiv(rest)
    if name.startswith(("https://www.youtube.com/", "https://youtube.com/", "https://youtu.be/")):
        return Source.from_youtube(name)
    return Source.from_file(name)


def read_options(system: str | None, schema: str | None, max_tokens: int | None = None) -> Options:
    """Return the Options from the arguments of a command."""
    shape = None if schema is None else _schema(schema)
    return Options(system_instruction=system, response_schema=shape, max_tokens=max_tokens)


def _schema(name: str) -> object:
    if not name.endswith(".json"):
        return name
    try:
        return json_format.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{name} cannot be read: {error}", hint="Name a .json file with a JSON Schema."
        ) from None


def _print(prompts: Sequence[str], envelope: ResultEnvelope, *, json: bool) -> None:
    if json:
        say(envelope.model_dump_json(indent=2))
    elif len(prompts) == 1:
        say(envelope.text)
    else:
        failures = envelope.errors or [None] * len(prompts)
        for prompt, answer, failure in zip(prompts, envelope.answers, failures, strict=True):
            reason = f"(no answer: {failure.message})" if failure else "(no answer)"
            say(f"# {prompt}\n\n{answer or reason}\n")
