"""Deferred delivery at its largest: `python -m benchmarks.deferred`. It takes twenty minutes.

`python -m benchmarks.deferred memory` and `… jobs` measure one half each; `… split` hands in 120,000 prompts.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.simulated import simulated

PROVIDERS = ("openai", "anthropic", "gemini")
PROMPTS, JOBS, SPLIT = 50_000, 1_000, 120_000
MOST_MIB = 200
# Longer, and the lease on a job might run out while its holder is at work.
MOST_HELD_S = 1.0


def memory(way: str, provider: str, prompts: int, most_mib: int | None) -> None:
    """In a process of its own, with the simulator and the Prefect server in others."""
    with simulated(0.0) as world:
        command = [sys.executable, "-m", "benchmarks.deferred_memory", way, provider, str(prompts)]
        done = subprocess.run([*command, world.base_url(provider)], check=True, stdout=subprocess.PIPE, text=True)
    for name, step in json.loads(done.stdout.splitlines()[-1])["steps"].items():
        verdict = "" if most_mib is None else f" (at most {most_mib}: {_yes(step['mib'] <= most_mib)})"
        held = f"{step['held_s']:.2f} s (at most {MOST_HELD_S:.0f}: {_yes(step['held_s'] <= MOST_HELD_S)})"
        print(
            f"{way} {provider} {prompts:,} {name}: {step['mib']:.0f} MiB over the idle process{verdict}, "
            f"{step['s']:.1f} s, {step['cpu_s']:.1f} of the CPU, the loop held for {held}",
            flush=True,
        )


def main(what: set[str]) -> None:
    if "memory" in what:
        for provider in PROVIDERS:
            memory("flows", provider, PROMPTS, MOST_MIB)
        for provider in PROVIDERS:  # whose answers are one envelope, all in memory
            memory("engine", provider, PROMPTS, None)
    if "jobs" in what:
        subprocess.run([sys.executable, "-m", "benchmarks.deferred_jobs", str(JOBS)], check=True)
    if "split" in what:
        memory("flows", "openai", SPLIT, None)


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "NO"


if __name__ == "__main__":
    main(set(sys.argv[1:]) or {"memory", "jobs"})
