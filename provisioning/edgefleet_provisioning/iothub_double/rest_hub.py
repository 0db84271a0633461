"""A hub's service interface over REST: registry, twins, methods, queries, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgefleet_provisioning.iothub_double import rest_calls as calls
from edgefleet_provisioning.iothub_double import rest_configurations as configurations
from edgefleet_provisioning.iothub_double import rest_registry as registry
from edgefleet_provisioning.iothub_double import rest_web as web
from edgefleet_provisioning.iothub_double.entra import HUB, Issuer
from edgefleet_provisioning.iothub_double.state import Hub

RIGHTS = {
    "iothubowner": frozenset({"read", "write", "service", "device"}),
    "service": frozenset({"service"}),
    "device": frozenset({"device"}),
    "registryRead": frozenset({"read"}),
    "registryReadWrite": frozenset({"read", "write"}),
}
"""What each policy of a hub may do."""
Work = Callable[["HubApi", Hub, Request], Any]


class _Deed(NamedTuple):
    """What a request needs: a right, and tokens of a bucket ("" = paid in the handler)."""

    right: str
    operation: str


class HubApi:
    """The service interface of every hub of a double.

    Args:
        hub_of: Returns the hub that a request means; raises `HubError`.
        issuer: Of Entra ID's tokens.
    """

    def __init__(self, hub_of: Callable[[Request], Hub], issuer: Issuer) -> None:
        self._hub_of = hub_of
        self._issuer = issuer
        self.method_min_s = 5.0
        """The shortest time-out that a method may have; a test may lower it."""

        self._configurations: dict[str, configurations.Configurations] = {}

    def configurations(self, hub: Hub) -> configurations.Configurations:
        """Return the configurations of a hub."""
        made = self._configurations.get(hub.host)
        return made or self._configurations.setdefault(hub.host, configurations.Configurations(hub))

    def routes(self) -> list[Route]:
        """Return the routes."""
        one, module = "/devices/{device}", "/devices/{device}/modules/{module}"
        twin, about = "/twins/{device}", "/twins/{device}/modules/{module}"
        read, write = _Deed("read", "registry"), _Deed("write", "registry")
        query, configuration = _Deed("service", "queries"), _Deed("write", "configurations")
        method, reads = _Deed("service", ""), _Deed("service", "twin_reads")
        updates = _Deed("service", "twin_updates")
        found = [
            self._route("POST", "/devices/query", query, _query),
            self._route("GET", "/devices", read, _list),
            self._route("POST", "/devices", write, _bulk),
            self._route("GET", "/devices/{device}/modules", read, _modules),
            self._route("POST", one + "/applyConfigurationContent", configuration, _apply_content),
            self._route("GET", "/configurations", configuration, _list_configurations),
            self._route("GET", "/configurations/{name}", configuration, _get_configuration),
            self._route("PUT", "/configurations/{name}", configuration, _put_configuration),
            self._route("DELETE", "/configurations/{name}", configuration, _drop_configuration),
            self._route("GET", "/statistics/devices", read, _statistics),
            self._route("GET", "/statistics/service", read, _connected),
        ]
        for path in (module, one):
            found += [
                self._route("GET", path, read, _get),
                self._route("PUT", path, write, _put),
                self._route("DELETE", path, write, _delete),
            ]
        for path in (about, twin):
            found += [
                self._route("POST", path + "/methods", method, _method),
                self._route("GET", path, reads, _get_twin),
                self._route("PATCH", path, updates, _patch_twin),
                self._route("PUT", path, updates, _patch_twin),
            ]
        return found

    def _route(self, verb: str, path: str, deed: _Deed, work: Work) -> Route:
        async def handle(request: Request) -> Response:
            hub = self._hub_of(request)
            policies = {
                name: (key, RIGHTS.get(name, frozenset())) for name, key in hub.policies.items()
            }
            web.allow(
                request,
                deed.right,
                host=hub.host,
                policies=policies,
                issuer=self._issuer,
                audience=HUB,
                clock=hub.clock,
            )
            web.need_version(request)
            if deed.operation:
                hub.throttles.spend(deed.operation)
            found = await work(self, hub, request)
            return found if isinstance(found, Response) else web.answer(found)

        return Route(path, web.refusing(handle), methods=[verb])


def _where(request: Request) -> tuple[str, str]:
    return request.path_params["device"], request.path_params.get("module", "")


async def _list(_: HubApi, hub: Hub, request: Request) -> Any:
    return registry.listed(hub, request.query_params.get("top"))


async def _bulk(api: HubApi, hub: Hub, request: Request) -> Response:
    found = registry.bulk(hub, await web.body(request))
    api.configurations(hub).evaluate()
    return JSONResponse(found.told, found.status)


async def _modules(_: HubApi, hub: Hub, request: Request) -> Any:
    device = request.path_params["device"]
    hub.registry.get(device)
    return [identity.document() for identity in hub.registry.modules(device)]


async def _get(_: HubApi, hub: Hub, request: Request) -> Any:
    return registry.get(hub, *_where(request))


async def _put(api: HubApi, hub: Hub, request: Request) -> Any:
    said, if_match = await web.mapping(request), request.headers.get("if-match")
    found = registry.put(hub, *_where(request), said, if_match)
    api.configurations(hub).evaluate()
    return found


async def _delete(_: HubApi, hub: Hub, request: Request) -> Response:
    hub.registry.delete(*_where(request), request.headers.get("if-match"))
    return Response(status_code=204)


async def _get_twin(_: HubApi, hub: Hub, request: Request) -> Any:
    return hub.twin(*_where(request))


async def _patch_twin(api: HubApi, hub: Hub, request: Request) -> Any:
    said, if_match = await web.mapping(request), request.headers.get("if-match")
    found = hub.patch_twin(*_where(request), said, if_match, replace=request.method == "PUT")
    api.configurations(hub).evaluate()
    return found


async def _method(api: HubApi, hub: Hub, request: Request) -> Any:
    return await calls.invoke(hub, request, api.method_min_s)


async def _query(_: HubApi, hub: Hub, request: Request) -> Any:
    return await calls.ask(hub, request)


async def _statistics(_: HubApi, hub: Hub, __: Request) -> Any:
    return registry.statistics(hub)


async def _connected(_: HubApi, hub: Hub, __: Request) -> Any:
    devices = {device for device, module in hub.sessions.connected() if not module}
    return {"connectedDeviceCount": len(devices)}


async def _apply_content(_: HubApi, hub: Hub, request: Request) -> Response:
    configurations.apply(hub, request.path_params["device"], await web.mapping(request))
    return Response(status_code=204)


async def _list_configurations(api: HubApi, hub: Hub, __: Request) -> Any:
    return api.configurations(hub).all()


async def _get_configuration(api: HubApi, hub: Hub, request: Request) -> Any:
    return api.configurations(hub).get(request.path_params["name"])


async def _put_configuration(api: HubApi, hub: Hub, request: Request) -> Any:
    said, if_match = await web.mapping(request), request.headers.get("if-match")
    return api.configurations(hub).put(request.path_params["name"], said, if_match)


async def _drop_configuration(api: HubApi, hub: Hub, request: Request) -> Response:
    name, if_match = request.path_params["name"], request.headers.get("if-match")
    api.configurations(hub).delete(name, if_match)
    return Response(status_code=204)
