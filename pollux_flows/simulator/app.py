"""The ASGI application: routes each path to its provider."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qs

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Scope
from typing_extensions import override

from pollux_flows.simulator.control import control_routes
from pollux_flows.simulator.exchange import Exchange
from pollux_flows.simulator.providers import PROVIDERS
from pollux_flows.simulator.wire import Call, Operation, Provider, Refusal

if TYPE_CHECKING:
    from pollux_flows.simulator.simulator import Simulator


class _ApiVersion(StringConvertor):
    """A path segment with an API version of Gemini, whose SDK uses both."""

    regex = "v1(?:beta)?"


register_url_convertor("apiversion", _ApiVersion())


class _Route(Route):
    """A route that may also require a query parameter."""

    parameter: str | None = None

    @override
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if self.parameter and self.parameter not in parse_qs(scope.get("query_string", b"").decode("latin-1")):
            return Match.NONE, {}
        return super().matches(scope)


def build_app(simulator: Simulator) -> Router:
    # A bare router: the middleware of a full application would turn a dropped connection into a 500.
    routes: list[BaseRoute] = list(control_routes(simulator))
    for provider in PROVIDERS.values():
        routes.extend(_route(simulator, provider, operation) for operation in provider.operations)
        # Last: an unknown path is refused in the provider's own format.
        routes.append(Route(provider.prefix + "/{path:path}", Exchange(simulator, provider, _unknown_path(provider))))
    return Router(routes, redirect_slashes=False)


def _route(simulator: Simulator, provider: Provider, operation: Operation) -> Route:
    route = _Route(
        provider.prefix + operation.path, Exchange(simulator, provider, operation), methods=[operation.method]
    )
    route.parameter = operation.parameter
    return route


def _unknown_path(provider: Provider) -> Operation:
    def refuse(call: Call) -> NoReturn:
        raise Refusal(404, f"Unknown path: {provider.prefix}/{call.params['path']}")

    return Operation("unknown", "*", "/{path:path}", refuse)
