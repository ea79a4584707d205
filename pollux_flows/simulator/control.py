"""The simulator's own endpoints, to control it from another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pollux_flows.simulator.faults import Fault

if TYPE_CHECKING:
    from pollux_flows.simulator.simulator import Simulator

_RULE_FIELDS = frozenset({"times", "provider", "operation", "contains"})


def control_routes(simulator: Simulator) -> Sequence[Route]:
    async def add_fault(request: Request) -> Response:
        """Queue a fault. The body has the arguments of `Fault` and `Simulator.fail` in one flat JSON object."""
        try:
            arguments = orjson.loads(await request.body())
            rule = {name: arguments.pop(name) for name in _RULE_FIELDS & arguments.keys()}
            fault = Fault(**arguments)
            simulator.fail(fault, **rule)
        except (ValueError, TypeError, AttributeError) as problem:
            return _json({"error": str(problem)}, 400)
        return _json({"queued": asdict(fault)}, 201)

    async def add_plan(request: Request) -> Response:
        """Queue a batch plan. The body has the arguments of `Simulator.batch` in one JSON object."""
        try:
            arguments = orjson.loads(await request.body())
            simulator.batch(**arguments)
        except (ValueError, TypeError) as problem:
            return _json({"error": str(problem)}, 400)
        return _json({"queued": arguments}, 201)

    async def batches(_: Request) -> Response:
        return _json({"batches": [batch.as_json() for batch in simulator.batches]})

    async def requests(_: Request) -> Response:
        return _json({"requests": [asdict(entry) for entry in simulator.requests]})

    async def files(_: Request) -> Response:
        return _json({"files": [file.as_json() for file in simulator.files]})

    async def reset(_: Request) -> Response:
        simulator.reset()
        return _json({})

    return [
        Route("/_simulator/faults", add_fault, methods=["POST"]),
        Route("/_simulator/batches", add_plan, methods=["POST"]),
        Route("/_simulator/batches", batches, methods=["GET"]),
        Route("/_simulator/requests", requests, methods=["GET"]),
        Route("/_simulator/files", files, methods=["GET"]),
        Route("/_simulator/reset", reset, methods=["POST"]),
    ]


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
