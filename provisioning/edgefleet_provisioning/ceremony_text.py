"""What new metadata changes, for the person who signs it: complete, nothing left out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuf.api.metadata import Metadata, Root, Targets

from edgefleet_provisioning.ceremony import Ceremony, Need
from edgefleet_shared.times import format_time

Names = Callable[[str], str]
"""What people call a key, by its id."""


def describe(ceremony: Ceremony, names: Names) -> list[str]:
    """Return the whole difference between the present metadata and the new."""
    lines = []
    for name, metadata in ceremony.new.items():
        lines.append(f"{name}   {ceremony.digest(name)}")
        lines += [f"  {line}" for line in differences(ceremony.before(name), metadata, names)]
    return lines


def missing(need: Need, names: Names) -> str:
    """Return who must still sign a file, in one sentence."""
    left = need.threshold - len(need.signed)
    who = ", ".join(sorted(names(keyid) for keyid in need.missing)) or "nobody that is named"
    have = ", ".join(sorted(names(keyid) for keyid in need.signed)) or "nobody"
    return f"{need.file} needs {left} more by the keys of {need.by}: {who} (signed: {have})"


def differences(before: Metadata[Any] | None, after: Metadata[Any], names: Names) -> Iterator[str]:
    """Yield what is different in one file, a line each."""
    old, new = (before.signed.to_dict() if before else {}), after.signed.to_dict()
    was = f", was {old['version']}" if old else ", the first"
    yield f"version {new.pop('version')}{was}"
    yield f"expires {format_time(after.signed.expires)}"
    for fields in (old, new):
        fields.pop("expires", None)
        fields.pop("version", None)
    yield from _roles(_grants(before.signed if before else None), _grants(after.signed), names)
    for fields in (old, new):
        for place in (fields, fields.get("delegations") or {}):
            place.pop("keys", None)  # which key means which content is checked by its id
            place.pop("roles", None)
    yield from _rest("", old, new)


def _grants(signed: Root | Targets | None) -> dict[str, tuple[int, list[str], Any]]:
    """Return role -> (threshold, key ids, what else the grant says)."""
    if signed is None:
        return {}
    if isinstance(signed, Root):
        return {n: (r.threshold, r.keyids, r.unrecognized_fields) for n, r in signed.roles.items()}
    roles = (signed.delegations.roles if signed.delegations else None) or {}
    return {
        name: (r.threshold, r.keyids, [r.paths, r.path_hash_prefixes, r.terminating,
                                       r.unrecognized_fields])
        for name, r in roles.items()
    }  # fmt: skip


def _roles(
    old: Mapping[str, tuple[int, list[str], Any]],
    new: Mapping[str, tuple[int, list[str], Any]],
    names: Names,
) -> Iterator[str]:
    for name in [*new, *(name for name in old if name not in new)]:
        (t0, k0, rest0), (t1, k1, rest1) = (g.get(name, (0, [], None)) for g in (old, new))
        if name not in old:
            yield f"{name}: NEW ROLE for {_paths(rest1)}"
        if name not in new:
            yield f"{name}: REMOVED"
        for sign, keys, others in (("+", k1, k0), ("-", k0, k1)):
            for keyid in keys:
                if keyid not in others:
                    yield f"{name}: {sign} key {names(keyid)} ({keyid})"
        if t0 != t1 and name in new:
            yield f"{name}: {t1} of {len(k1)} must sign" + (
                f", was {t0} of {len(k0)}" if t0 else ""
            )
        if name in old and name in new and rest0 != rest1:
            yield f"{name}: {rest0} becomes {rest1}"
    if list(old) != [name for name in new if name in old]:
        yield f"order of roles: {', '.join(new)}"


def _paths(rest: Any) -> str:
    return ", ".join(rest[0] or []) if isinstance(rest, list) else "the catalog"


def _rest(path: str, old: Any, new: Any) -> Iterator[str]:
    """Yield every other difference, whatever it is, by its path."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _rest(f"{path}/{key}", old.get(key), new.get(key))
    elif old != new:
        if old is not None:
            yield f"- {path[1:]}: {old}"
        if new is not None:
            yield f"+ {path[1:]}: {new}"
