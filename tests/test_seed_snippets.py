"""The snippets of the seeds, unchanged except for the name of the package and restored indentation.

Each runs in a new process, which has keys and addresses in its environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pollux_flows.simulator import Simulator
from tests.loopback import asked, sim, world

__all__ = ["sim", "world"]

COMPARE = '''
def compare_efficiency(video_tokens: int, num_questions: int) -> None:
    """Compare token usage between naive and cached approaches."""
    question_tokens = 50  # Average question length
    answer_tokens = 100  # Average answer length

    # Naive: send full context each time
    naive_total = num_questions * (video_tokens + question_tokens + answer_tokens)

    # Cached: send context once, reference thereafter
    cached_total = video_tokens + num_questions * (question_tokens + answer_tokens)

    savings = naive_total - cached_total
    savings_pct = (savings / naive_total) * 100

    print(f"Questions: {num_questions}")
    print(f"Naive approach: {naive_total:,} tokens")
    print(f"Cached approach: {cached_total:,} tokens")
    print(f"Savings: {savings:,} tokens ({savings_pct:.1f}%)")

# Example: 1-hour video, 10 questions
compare_efficiency(946_800, 10)
# Savings: 8,521,200 tokens (90.0%)
'''

IMPLICIT = """
from pollux_flows import Options

# Disable Anthropic implicit caching for a one-off call.
options = Options(implicit_caching=False)
"""

EXPLICIT = """
import asyncio
from pollux_flows import Config, Options, Source, create_cache, run_many

async def main() -> None:
    config = Config(
        provider="gemini",
        model="gemini-2.5-flash-lite",
    )
    sources = [Source.from_text(
        "ACME Corp Q3 2025 earnings: revenue $4.2B (+12% YoY), "
        "operating margin 18.5%, guidance raised for Q4."
    )]

    handle = await create_cache(sources, config=config, ttl_seconds=3600)

    prompts = ["Summarize in one sentence.", "List 3 keywords."]
    first = await run_many(prompts=prompts, config=config, options=Options(cache=handle))
    second = await run_many(prompts=prompts, config=config, options=Options(cache=handle))

    print("first:", first["status"])
    print("second:", second["status"])
    print("cache_used:", second.get("metrics", {}).get("cache_used"))

asyncio.run(main())
"""

# This snippet awaits at its top level, as in a notebook.
UNSUPPORTED = """
from pollux_flows import Config, Source, create_cache

config = Config(provider="openai", model="gpt-5-nano")

# This raises immediately:
# ConfigurationError: Provider 'openai' does not support persistent caching
# hint: "Use a provider that supports persistent_cache (e.g. Gemini)."
handle = await create_cache(
    [Source.from_text("hello")], config=config
)
"""
IN_A_NOTEBOOK = """
import ast, asyncio, sys
code = compile(sys.stdin.read(), "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
asyncio.run(eval(code, {"__name__": "__main__"}))
"""


def run_program(
    program: str, world: tuple[Simulator, str], folder: Path, *, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    _, origin = world
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GEMINI_API_KEY": "sk-sentinel",
        "OPENAI_API_KEY": "sk-sentinel",
        "GOOGLE_GEMINI_BASE_URL": Simulator.base_url("gemini", origin),
        "OPENAI_BASE_URL": Simulator.base_url("openai", origin),
    }
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        env=environment, cwd=folder, input=stdin, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


def test_the_snippet_about_efficiency_prints_the_result_of_the_seed(
    world: tuple[Simulator, str], tmp_path: Path
) -> None:
    done = run_program(COMPARE, world, tmp_path)
    assert done.stdout.splitlines()[-1] == "Savings: 8,521,200 tokens (90.0%)"


def test_the_snippet_that_disables_implicit_caching_runs(world: tuple[Simulator, str], tmp_path: Path) -> None:
    """Options need no provider."""
    done = run_program(IMPLICIT, world, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_snippet_about_a_cache_creates_and_uses_one(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """There is one create request, and two runs of two prompts read from the cache."""
    done = run_program(EXPLICIT, world, tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["first: ok", "second: ok", "cache_used: True"]
    assert [entry.operation for entry in sim.requests] == ["cache.create"] + ["generate"] * 4
    assert all("ACME" not in str(entry.body) for entry in asked(sim))


def test_the_snippet_about_a_provider_without_caches_raises_immediately(
    world: tuple[Simulator, str], sim: Simulator, tmp_path: Path
) -> None:
    """The error names the provider, the capability and an alternative, and no request is sent."""
    done = run_program(IN_A_NOTEBOOK, world, tmp_path, stdin=UNSUPPORTED)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigurationError: Provider 'openai' does not support" in last
    assert "persistent_cache" in last
    assert "gemini" in last
    assert sim.requests == []


@pytest.mark.parametrize("snippet", [COMPARE, IMPLICIT, EXPLICIT, UNSUPPORTED])
def test_a_snippet_imports_only_this_package(snippet: str) -> None:
    """In each import, `pollux` is replaced by `pollux_flows`."""
    assert "from pollux " not in snippet
