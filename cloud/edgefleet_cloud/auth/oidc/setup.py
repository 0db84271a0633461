"""From the `[oidc]` table of the configuration to what checks tokens."""

from __future__ import annotations

from edgefleet_cloud.auth.caller import Binding, read_scope
from edgefleet_cloud.auth.oidc.claims import Given, Oidc, Rules
from edgefleet_cloud.auth.oidc.fetch import fetcher, is_safe
from edgefleet_cloud.auth.oidc.keys import KeyCache
from edgefleet_cloud.auth.roles import Role
from edgefleet_cloud.config import Oidc as Config
from edgefleet_shared.errors import InvalidInputError


def configured(config: Config) -> Oidc | None:
    """Return what checks a provider's tokens; None if none is configured.

    Raises:
        InvalidInputError: The issuer is not https, or a scope is none.
    """
    if not config.issuer:
        return None
    if not is_safe(config.issuer):
        raise InvalidInputError(
            f"oidc.issuer = {config.issuer!r} is not https.",
            code="configuration",
            hint="Plain http is taken of a provider on this very machine alone.",
        )
    given = []
    for each in config.mapping:
        role = Role(each.role)
        binding = Binding(role, read_scope(role, each.scope))
        given.append(Given(each.claim or config.roles_claim, each.value, binding))
    rules = Rules(
        config.issuer, config.audience, config.client_id, config.subject_claim, config.leeway_s,
        given,
    )  # fmt: skip
    return Oidc(rules, KeyCache(config.issuer, fetcher(config.ca)))
