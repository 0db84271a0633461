"""`edgefleet login` and `edgefleet logout`: as oneself, at an OpenID provider."""

from __future__ import annotations

from typing import Annotated

import typer

from edgefleet_provisioning import logins
from edgefleet_provisioning.api import Api
from edgefleet_provisioning.commands.session import FleetOption, JsonOption, ServerOption
from edgefleet_provisioning.device_login import Prompt, Wish, log_in
from edgefleet_provisioning.output import Output
from edgefleet_provisioning.settings import Connection, connection


def login(
    *,
    issuer: Annotated[str, typer.Option(help="The OpenID provider, as the server knows it.")],
    client_id: Annotated[str, typer.Option(help="This program there.")] = "edgefleet-cli",
    audience: Annotated[str, typer.Option(help="The server's `oidc.audience`.")] = "",
    scope: Annotated[str, typer.Option(help="Scopes to ask for.")] = "openid",
    server: ServerOption = None,
    fleet: FleetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Log in by a browser, here or elsewhere; commands to this server are yours until it ends."""
    output = Output(as_json=as_json)
    url = connection(server, None, fleet).server

    def show(prompt: Prompt) -> None:
        output.note(f"Open {prompt.address} and confirm the code {prompt.code}")

    granted = log_in(Wish(issuer, client_id, audience, scope), show)
    with Api(Connection(url, granted.token)) as api:
        found = api.get("/v1/whoami")  # what the server does not take is not kept
    logins.keep(url, granted.token, granted.life_s)
    minutes = granted.life_s // 60
    output.result(found, f"You are {found.get('actor')} at {url} for {minutes} minutes.")


def logout(
    *, server: ServerOption = None, fleet: FleetOption = None, as_json: JsonOption = False
) -> None:
    """Forget the login at this server; the provider is not told."""
    url = connection(server, None, fleet).server
    was = logins.forget(url)
    said = f"You are logged out of {url}." if was else f"You were not logged in at {url}."
    Output(as_json=as_json).result({"server": url, "logged_out": was}, said)
