"""An offline simulator that speaks the wire protocols of all providers.

It is independent: like the real providers, it imports nothing from the rest of the package.

    sim = Simulator()
    with serve(sim) as origin:
        client = openai.AsyncOpenAI(base_url=sim.base_url("openai", origin), api_key="any")

Its answers follow from the request alone, its token counts from a rule that is checked by hand, and it
refuses what the providers refuse. `Simulator.fail` makes things go wrong with requests, and `Simulator.batch`
with batches.
"""

from __future__ import annotations

from pollux_flows.simulator.batch.plan import Plan
from pollux_flows.simulator.batch.stored import StoredBatch
from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.log import Logged
from pollux_flows.simulator.server import run, serve
from pollux_flows.simulator.stored_files import StoredFile
from pollux_flows.simulator.world import Simulator, in_process

__all__ = ["Fault", "Logged", "Plan", "Simulator", "StoredBatch", "StoredFile", "in_process", "run", "serve"]
