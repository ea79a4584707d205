"""An offline simulator that speaks the wire protocols of all providers.

Like the real providers, the simulator is independent of the rest of the package, and imports nothing from it.

    sim = Simulator()
    with serve(sim) as origin:
        client = openai.AsyncOpenAI(base_url=sim.base_url("openai", origin), api_key="any")

Answers depend on the request only, and token counts follow a simple rule (see `tokens`). Requests that the providers
refuse are refused. `Simulator.fail` queues faults for requests, and `Simulator.batch` queues plans for batches.
"""

from __future__ import annotations

from pollux_flows.simulator.batch.plan import Plan
from pollux_flows.simulator.batch.stored import StoredBatch
from pollux_flows.simulator.faults import Fault
from pollux_flows.simulator.log import Logged
from pollux_flows.simulator.server import run, serve
from pollux_flows.simulator.simulator import Simulator, in_process
from pollux_flows.simulator.stored_files import StoredFile

__all__ = ["Fault", "Logged", "Plan", "Simulator", "StoredBatch", "StoredFile", "in_process", "run", "serve"]
