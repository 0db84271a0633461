"""`edgefleet-cloud ca`: look at the device authority, replace it, let the old one go."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Any, NamedTuple

from sqlmodel import Session

from edgefleet_cloud.authority import rotation
from edgefleet_cloud.authority.issuing import Issuer, load_issuers
from edgefleet_cloud.config import Config
from edgefleet_cloud.database import Database
from edgefleet_cloud.enrollments import repository
from edgefleet_cloud.errors import ConflictError
from edgefleet_cloud.ports import EventSink, system_clock
from edgefleet_shared.steps import Step
from edgefleet_shared.times import format_time

ACTOR = "edgefleet-cloud"
SHOWN = 20


def add_arguments(
    parser: argparse.ArgumentParser, add_config: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Give a parser the actions of `ca`."""
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for action, what in (
        ("list", "name the authorities that are trusted, newest first"),
        ("rotate", "make a new one, which issues; the old one stays trusted"),
        ("retire", "trust the newest one alone"),
    ):
        one = actions.add_parser(action, help=what)
        add_config(one)
        one.add_argument("--json", action="store_true", help="one JSON object")
        if action == "retire":
            one.add_argument(
                "--force", action="store_true", help="though devices would be cut off for a while"
            )


def run(
    options: argparse.Namespace, settings: Config, database: Database, events: EventSink
) -> str:
    """Do what was asked and return what to print.

    Raises:
        ConflictError: A rotation is not ended (`rotation_under_way`), or devices hold certificates
            of the old authority alone (`authority_in_use`).
        UnavailableError: The authority cannot be read.
    """
    if options.action == "rotate":
        before = load_issuers(settings.keys)
        made = rotation.rotate(settings.keys, system_clock())
        change = _Change(before, [made, *before])
        with database.write() as session:
            message = f"{_name(made)} issues certificates now."
            _tell(session, events, "rotated", message, made, change)
        text = (
            f"{_name(made)} issues from now on. A fleet manager that runs takes it up within "
            "seconds and asks its devices to renew.\n"
            "Next, once they have: edgefleet-cloud ca retire"
        )
    elif options.action == "retire":
        text = _retire(settings, database, events, force=options.force)
    else:
        text = "\n".join(_line(issuer) for issuer in load_issuers(settings.keys))
    if not options.json:
        return text
    found = [_facts(issuer) for issuer in load_issuers(settings.keys)]
    return json.dumps({"authorities": found})


def _retire(settings: Config, database: Database, events: EventSink, *, force: bool) -> str:
    newest, *older = load_issuers(settings.keys)
    if not older:
        rotation.retire(settings.keys)  # sweeps up a key that a power cut may have left
        return f"{_name(newest)} is the only authority already."
    with database.read() as session:
        left = repository.without_certificate_of(session, newest.digest)
    if left and not force:
        raise ConflictError(
            f"{len(left)} devices hold certificates of the old authority alone: {_some(left)}.",
            code="authority_in_use",
            hint="Wait until they have renewed. With --force they are cut off from the broker "
            "until they do, which they can over HTTP.",
        )
    rotation.retire(settings.keys)
    with database.write() as session:
        change = _Change([newest, *older], [newest])
        for issuer in older:
            message = f"{_name(issuer)} is trusted no more."
            _tell(session, events, "retired", message, issuer, change)
    return f"{_name(newest)} is trusted alone." + (
        f" {len(left)} devices will renew over HTTP: {_some(left)}." if left else ""
    )


class _Change(NamedTuple):
    """The authorities that were trusted, and those that are."""

    before: Sequence[Issuer]
    after: Sequence[Issuer]


def _tell(
    session: Session, events: EventSink, what: str, message: str, issuer: Issuer, change: _Change
) -> None:
    events.record(
        session,
        type=f"authority.{what}",
        step=Step.TARGET,
        subject=f"authorities/{issuer.digest}",
        message=message,
        actor=ACTOR,
        data=_facts(issuer),
        before={"authorities": [each.digest for each in change.before]},
        after={"authorities": [each.digest for each in change.after]},
    )


def _facts(issuer: Issuer) -> dict[str, Any]:
    until = format_time(issuer.certificate.not_valid_after_utc.astimezone(UTC))
    return {"name": _name(issuer), "key": issuer.digest, "not_after": until}


def _line(issuer: Issuer) -> str:
    facts = _facts(issuer)
    return f"{facts['name']}\tuntil {facts['not_after']}\t{facts['key']}"


def _name(issuer: Issuer) -> str:
    return issuer.certificate.subject.rfc4514_string().removeprefix("CN=")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
