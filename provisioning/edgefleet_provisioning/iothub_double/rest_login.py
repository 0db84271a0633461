"""The issuer's own interface: where azure-identity finds it and asks for tokens."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgefleet_provisioning.iothub_double.entra import Issuer
from edgefleet_provisioning.iothub_double.refusals import HubError


def routes(issuer: Issuer) -> list[Route]:
    """Return the routes of the issuer."""

    async def configuration(request: Request) -> Response:
        base = f"{_authority(request)}/{request.path_params['tenant']}"
        told: dict[str, Any] = {
            "issuer": f"{base}/v2.0",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "jwks_uri": f"{base}/discovery/v2.0/keys",
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
        }
        return JSONResponse(told)

    async def token(request: Request) -> Response:
        form = {
            name: values[0] for name, values in parse_qs((await request.body()).decode()).items()
        }
        if request.path_params["tenant"] != issuer.tenant:
            return _refused("invalid_request", "AADSTS90002: Tenant not found.", 400)
        if form.get("grant_type") != "client_credentials":
            return _refused("unsupported_grant_type", "AADSTS70003: Unsupported grant.", 400)
        scopes = [one for one in form.get("scope", "").split() if one.endswith("/.default")]
        if len(scopes) != 1:
            return _refused("invalid_scope", "AADSTS1002012: The scope ends with /.default.", 400)
        client, secret = form.get("client_id", ""), form.get("client_secret", "")
        try:
            return JSONResponse(issuer.token(client, secret, scopes[0], _authority(request)))
        except HubError as error:
            return _refused(error.code, str(error), error.status)

    return [
        Route("/{tenant}/v2.0/.well-known/openid-configuration", configuration, methods=["GET"]),
        Route("/{tenant}/oauth2/v2.0/token", token, methods=["POST"]),
    ]


def _authority(request: Request) -> str:
    return f"https://{request.headers.get('host', '')}"


def _refused(code: str, description: str, status: int) -> Response:
    return JSONResponse({"error": code, "error_description": description}, status)
