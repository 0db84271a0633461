"""`edgefleet audit`: who changed what and why, and whether the record of it still holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from tuf.api.metadata import Targets

from edgefleet_provisioning.audit_log import (
    Finding,
    LogCheck,
    Row,
    Statement,
    check_statements,
    read_statement,
)
from edgefleet_provisioning.catalog import Catalog
from edgefleet_provisioning.commands import arguments
from edgefleet_provisioning.commands.session import Session, reading
from edgefleet_provisioning.durable import write_file
from edgefleet_provisioning.fleet_folder import FleetFolder, read
from edgefleet_provisioning.settings import need_folder
from edgefleet_shared import strict_json
from edgefleet_shared.audit import HEAD_MAX_BYTES
from edgefleet_shared.trust import AUDIT_ROLE

PAGE = 500
PROGRESS = 20_000

app = typer.Typer(help="See who changed what, and check the record.", no_args_is_help=True)


@app.command("log")
@reading
def log(
    session: Session,
    actor: Annotated[str, typer.Option(help="Only what they did, as token/anna.")] = "",
    subject: Annotated[
        str, typer.Option(help="Only about this, as devices/cam-1; * fits all.")
    ] = "",
    kind: Annotated[str, typer.Option("--type", help="Only these events, as device.*")] = "",
    since: Annotated[str | None, typer.Option(help="Only from then on (RFC 3339, UTC).")] = None,
    until: Annotated[str | None, typer.Option(help="Only until then (RFC 3339, UTC).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest.")] = 50,
) -> None:
    """Show changes with their reasons, and what was and is; a document a line with --json."""
    parts = [
        f"actor == {_quoted(actor)}" if actor else "",
        f"subject like {_quoted(subject)}" if subject else "",
        f"type like {_quoted(kind)}" if kind else "",
        f"ts >= {_quoted(arguments.moment(since))}" if since else "",
        f"ts <= {_quoted(arguments.moment(until))}" if until else "",
    ]
    query = " and ".join(part for part in parts if part)
    events = session.api.items("/v1/events", limit, filter=query, order_by="id desc")
    for event in reversed(events):
        if session.output.as_json:
            session.output.line(event)
            continue
        lines = [f"{event['id']}  {event['ts']}  {event['actor']}  {event['message']}"]
        lines += [f"  because: {event['reason']}"] if event["reason"] else []
        lines += [f"  {line}" for line in _differences(event["before"], event["after"])]
        session.output.result(event, "\n".join(lines))


@app.command("heads")
@reading
def heads(
    session: Session,
    save: Annotated[
        Path | None,
        typer.Option(help="Keep the newest one in this file, for `verify --since-head`."),
    ] = None,
) -> None:
    """Show the signed statements about the log, checked; keep the newest on your side."""
    folder, targets = _trusted(session)
    envelopes = _envelopes(session)
    statements = [read_statement(envelope, targets) for envelope in envelopes]
    kept = _kept(save, targets) if save and save.exists() else None
    if finding := check_statements(statements, folder.file.fleet, kept):
        _bad(session, finding, {"statements": len(statements)})
    if save and envelopes:
        write_file(save, json.dumps(envelopes[-1]).encode() + b"\n")
        session.output.note(f"Statement {statements[-1].head.number} is kept in {save}.")
    documents = [_document(statement) for statement in statements]
    columns = ("number", "time", "last", "count", "hash")
    rows = [tuple(document[column] for column in columns) for document in documents]
    session.output.table(documents, columns, rows)


@app.command("verify")
@reading
def verify(
    session: Session,
    since_head: Annotated[
        Path | None,
        typer.Option(help="A statement that `heads --save` kept: begin there, and insist on it."),
    ] = None,
) -> None:
    """Read the whole log and compute it anew; exit code 1 and the first bad row if it is not so."""
    folder, targets = _trusted(session)
    kept = _kept(since_head, targets) if since_head else None
    statements = [read_statement(envelope, targets) for envelope in _envelopes(session)]
    finding = check_statements(statements, folder.file.fleet, kept)
    check = LogCheck(statements, kept)
    finding = finding or _read_all(session, check)
    document: dict[str, Any] = {
        "rows": check.rows,
        "last": check.last,
        "statements": len(statements),
        "signed_up_to": statements[-1].head.last if statements else 0,
        "newest_statement": _document(statements[-1]) if statements else None,
    }
    if finding:
        _bad(session, finding, document)
    if not statements:
        session.output.note(_unsigned(targets))
    signed = f"signed up to row {document['signed_up_to']}" if statements else "signed by nobody"
    session.output.result(
        {"ok": True, **document},
        f"{check.rows} rows hold, up to row {check.last}; {signed}.",
    )


def _read_all(session: Session, check: LogCheck) -> Finding | None:
    """Follow the log to its end; return the first thing that is wrong."""
    said = 0
    while rows := _page(session, check.last):
        if finding := check.follow(rows):
            more = _page(session, rows[-1].entry.id)
            rest = [row for row in rows if row.entry.id > check.last]
            return check.follow([*rest, *more]) or finding
        if check.rows - said >= PROGRESS:
            said = check.rows
            session.output.note(f"{check.rows} rows hold so far.")
    return check.finish()


def _page(session: Session, after: int) -> list[Row]:
    found = session.api.get("/v1/events", filter=f"id > {after}", order_by="id", page_size=PAGE)
    return [Row.of(event) for event in found["items"]]


def _trusted(session: Session) -> tuple[FleetFolder, Targets]:
    folder = need_folder(session.fleet)
    catalog = Catalog(session.api, folder.root(), folder.trust_cache)
    return folder, catalog.top().targets.signed


def _envelopes(session: Session) -> list[dict[str, Any]]:
    items = session.api.items("/v1/audit/heads", order_by="number")
    return [item["envelope"] for item in items]


def _kept(path: Path, targets: Targets) -> Statement:
    data = read(
        path, "statement", f"{path} is missing.", "`edgefleet audit heads --save` makes it."
    )
    envelope = strict_json.decode(
        data, dict[str, Any], max_bytes=2 * HEAD_MAX_BYTES, what=f"statement {path.name}"
    )
    return read_statement(envelope, targets)


def _bad(session: Session, finding: Finding, document: dict[str, Any]) -> None:
    session.output.result(
        {"ok": False, **document, "finding": finding._asdict()},
        f"The log does not hold: {finding.kind}. {finding.message}",
    )
    raise typer.Exit(1)


def _document(statement: Statement) -> dict[str, Any]:
    head = statement.head
    return {
        "number": head.number,
        "time": head.time,
        "last": head.last,
        "count": head.count,
        "hash": head.hash,
        "digest": statement.digest,
    }


def _unsigned(targets: Targets) -> str:
    roles = (targets.delegations.roles if targets.delegations else None) or {}
    if AUDIT_ROLE in roles:
        return "There is no signed statement yet: whoever owns the database could write all anew."
    return "Nobody signs the log: `edgefleet keys rotate audit` gives the fleet an audit key."


def _differences(before: dict[str, Any] | None, after: dict[str, Any] | None) -> Sequence[str]:
    if before is None and after is None:
        return []
    old, new = before or {}, after or {}
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in keys]


def _short(value: object) -> str:
    text = "-" if value in (None, "", {}, []) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
