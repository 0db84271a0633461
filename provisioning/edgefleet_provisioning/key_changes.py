"""Next metadata: keys that come and go, thresholds, families, renewals. Pure; nothing is signed.

A change touches every file that it must: a new targets key needs new targets, a new publisher key
the publisher's file signed by it, with the same releases.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Metadata, Root, Targets

from edgefleet_provisioning.present import Present
from edgefleet_provisioning.repository import file_name
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import publisher_role
from edgefleet_shared.trust import AUDIT_PATHS, AUDIT_ROLE, DIRECTOR_ROLE, LIFE_DAYS

ROOT_ROLES = ("root", "targets", "snapshot", "timestamp")


class Changes:
    """Collects what the next metadata says.

    Args:
        present: What stands, verified.
        now: Aware time of signing; what is new begins its life then.
    """

    def __init__(self, present: Present, now: datetime) -> None:
        self._present = present
        self._now = now.replace(microsecond=0)
        self._new: dict[str, Metadata[Any]] = {}

    def renew(self, role: str) -> Any:
        """Have a role signed anew; return what will be signed, to be changed.

        Raises:
            InvalidInputError: There is no such role, or people do not sign it.
        """
        if role not in self._new:
            tops = self._present.roles()
            if role not in tops:
                raise InvalidInputError(
                    f"People do not sign {role[:80]!r} in this fleet.",
                    code="invalid_role",
                    hint=f"They sign {', '.join(tops)}.",
                )
            self._new[role] = deepcopy(tops[role])
            signed = self._new[role].signed
            signed.version += 1
            signed.expires = self._end(role)
        return self._new[role].signed

    def add(self, role: str, key: Key) -> None:
        """Let a key sign a role, beside those that do.

        Raises:
            InvalidInputError: It does already (code `key_exists`), or there is no such role.
        """
        holder = self._holder(role)
        if key.keyid in self.keyids(role):
            raise InvalidInputError(
                f"The key signs {role} already.", code="key_exists", hint="`edgefleet keys list`"
            )
        holder.add_key(key, role)
        self._follow(role)

    def remove(self, role: str, keyid: str) -> None:
        """Let a key sign a role no more.

        Raises:
            InvalidInputError: It does not anyway (code `no_key`).
        """
        if keyid not in self.keyids(role):
            raise InvalidInputError(
                f"The key {keyid[:12]} does not sign {role}.",
                code="no_key",
                hint="`edgefleet trust show` names the keys of every role.",
            )
        self._holder(role).revoke_key(keyid, role)
        self._follow(role)

    def replace_online(self, role: str, key: Key) -> None:
        """Let one key alone sign what the server signs; names the audit role if there is none."""
        if role == AUDIT_ROLE and AUDIT_ROLE not in self._delegations():
            roles = self.renew("targets").delegations.roles
            director = roles.pop(DIRECTOR_ROLE)
            roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=list(AUDIT_PATHS))
            roles[DIRECTOR_ROLE] = director
        for old in self.keyids(role):
            self.remove(role, old)
        self.add(role, key)

    def threshold(self, role: str, number: int) -> None:
        """Set how many of a role's keys must sign."""
        self._grant(role).threshold = number
        self._follow(role)

    def delegate(self, family: str, key: Key) -> None:
        """Let a key publish one more family, or one family beside those that do.

        The director stays the last delegation, so that no lookup of a model asks for its file.

        Raises:
            InvalidInputError: The key publishes it already (code `family_exists`).
        """
        role = publisher_role(family)
        roles = self.renew("targets").delegations.roles
        if role in roles:
            if key.keyid in roles[role].keyids:
                raise InvalidInputError(
                    f"The key publishes {family!r} already.",
                    code="family_exists",
                    hint="`edgefleet trust show` lists families and their keys.",
                )
            self.add(role, key)
            return
        director = roles.pop(DIRECTOR_ROLE, None)
        paths = [f"models/{family}/*/*"]
        roles[role] = DelegatedRole(role, [key.keyid], 1, terminating=True, paths=paths)
        if director is not None:
            roles[DIRECTOR_ROLE] = director
        self._new["targets"].signed.delegations.keys[key.keyid] = key
        self._new[role] = Metadata(Targets(expires=self._end(role)))

    def keyids(self, role: str) -> list[str]:
        """Return the ids of the keys that sign a role, changes included.

        Raises:
            InvalidInputError: There is no such role.
        """
        return list(self._grant(role).keyids)

    def roles_of(self, keyid: str) -> list[str]:
        """Return the roles that a key signs."""
        root, targets = self._signed("root"), self._signed("targets")
        grants = {**root.roles, **((targets.delegations and targets.delegations.roles) or {})}
        return [name for name, grant in grants.items() if keyid in grant.keyids]

    def finish(self) -> dict[str, Metadata[Any]]:
        """Return the new metadata by file name, roots first.

        Raises:
            InvalidInputError: A role would have fewer keys than must sign (code `threshold`).
        """
        for role in [*ROOT_ROLES, *self._delegations()]:
            grant = self._grant(role)
            if not 1 <= grant.threshold <= len(grant.keyids):
                raise InvalidInputError(
                    f"{role} would have {len(grant.keyids)} keys, and {grant.threshold} must sign.",
                    code="threshold",
                    hint="Add a key in the same step, or replace one: `edgefleet keys rotate`.",
                )
        order = sorted(self._new, key=lambda role: (role != "root", role != "targets", role))
        return {file_name(r, self._new[r].signed.version): self._new[r] for r in order}

    def without_spare(self) -> list[str]:
        """Return those of root and targets whose keys must all sign, if they are signed anew."""
        grants = {role: self._grant(role) for role in ("root", "targets") if "root" in self._new}
        return [role for role, grant in grants.items() if grant.threshold == len(grant.keyids)]

    def _signed(self, role: str) -> Any:
        return (self._new.get(role) or getattr(self._present, role)).signed

    def _delegations(self) -> dict[str, DelegatedRole]:
        targets: Targets = self._signed("targets")
        return (targets.delegations.roles if targets.delegations else None) or {}

    def _grant(self, role: str) -> Any:
        root: Root = self._signed("root")
        grant = root.roles.get(role) if role in ROOT_ROLES else self._delegations().get(role)
        if grant is None:
            raise InvalidInputError(
                f"There is no role {role[:80]!r}.",
                code="invalid_role",
                hint="`edgefleet trust show` lists them.",
            )
        return grant

    def _holder(self, role: str) -> Any:
        self._grant(role)
        return self.renew("root" if role in ROOT_ROLES else "targets")

    def _follow(self, role: str) -> None:
        """What other keys sign from now on must be signed anew, with what it holds now."""
        if role == "targets" or role in self._present.publishers:
            self.renew(role)

    def _end(self, role: str) -> datetime:
        return self._now + timedelta(days=LIFE_DAYS[role.partition("/")[0]])
