"""The event log: recorded with what it tells, read as pages, followed as a stream."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager

import pytest

from edgefleet_cloud.database import give_reason
from edgefleet_cloud.events.feed import EventFeed
from edgefleet_cloud.events.service import EventLog
from edgefleet_cloud.paging import PageQuery
from edgefleet_shared import reasons

FACT = {"type": "test.fact", "step": "report", "subject": "devices/cam-1", "message": "So it is."}


def _record(cloud, count: int = 1, **fields) -> None:
    log = cloud.program.app.state.parts.get(EventLog)
    with cloud.program.database.write() as session:
        for _ in range(count):
            log.record(session, **{**FACT, **fields})


@contextmanager
def _stream(cloud, last: str | None = None, **query):
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
    with cloud.client.stream("GET", "/v1/events", headers=headers, params=query) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines).startswith("retry:")
        yield lines


def _next(lines) -> dict:
    for line in lines:
        if line.startswith("data: "):
            return json.loads(line[6:])
    raise AssertionError("the stream ended")


def test_an_event_lives_and_dies_with_its_transaction(database):
    """What is rolled back never happened, and its number is not used again by accident."""
    log = EventLog(EventFeed())
    with database.write() as session:
        log.record(session, **FACT)
    with pytest.raises(RuntimeError), database.write() as session:
        log.record(session, **FACT)
        raise RuntimeError
    with database.write() as session:
        log.record(session, **FACT, actor="", data={"a": [1]})
    with database.read() as session:
        rows, _ = log.page(session, PageQuery())
    assert [row.actor for row in rows] == ["system", "system"]
    assert rows[1].id > rows[0].id
    assert rows[1].data == {"a": [1]}


def test_events_are_paged_and_filtered(cloud):
    """Pages follow one another, oldest first or newest first, and filters narrow them."""
    _record(cloud, 3)
    _record(cloud, 1, type="test.other", subject="devices/cam-2")
    mine = {"filter": "type like 'test.*'"}  # the admin's token told its own story
    get = lambda **query: cloud.client.get("/v1/events", params=mine | query).json()  # noqa: E731
    first = get(page_size=3)
    rest = get(page_size=3, page_token=first["next_page_token"])
    ids = [each["id"] for each in (*first["items"], *rest["items"])]
    assert ids == sorted(ids)
    assert len(ids) == 4
    assert [each["id"] for each in get(order_by="id desc", page_size=2)["items"]] == ids[:1:-1]
    (other,) = get(filter='type like "test.o*" and subject == "devices/cam-2"')["items"]
    assert (other["type"], other["message"]) == ("test.other", "So it is.")
    for query, code in (
        ({"filter": "kind == 1"}, "invalid_filter"),
        ({"page_token": "!"}, "page_token"),
        ({"order_by": "message"}, "order_by"),
    ):
        answer = cloud.client.get("/v1/events", params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, code)


def test_a_stream_tells_what_happens_next(cloud):
    """Without Last-Event-ID the stream begins now, and a commit reaches it at once."""
    _record(cloud, subject="devices/old")
    with _stream(cloud) as lines:
        _record(cloud, subject="devices/new")
        began = time.monotonic()
        event = _next(lines)
        assert event["subject"] == "devices/new"
        assert time.monotonic() - began < 5  # far below the keep-alive: a commit woke it


def test_a_stream_resumes_without_loss_or_repeat(cloud):
    """From 0 it tells everything, more than one read holds; from a number, what came after it."""
    _record(cloud, 450)
    with _stream(cloud, last="0") as lines:
        seen = [_next(lines)["id"] for _ in range(450)]
    assert seen == sorted(set(seen))
    with _stream(cloud, last=str(seen[-2])) as lines:
        assert _next(lines)["id"] == seen[-1]
        _record(cloud)
        assert _next(lines)["id"] == seen[-1] + 1


def test_a_filtered_stream_leaves_the_rest_out(cloud):
    """The filter of lists holds for streams."""
    with _stream(cloud, filter='type == "test.wanted"') as lines:
        _record(cloud, 5)
        _record(cloud, type="test.wanted")
        assert _next(lines)["type"] == "test.wanted"


def test_bad_streams_are_refused(cloud):
    """A garbled position, a bad filter and a missing token get a problem, not a stream."""
    stream = {"Accept": "text/event-stream"}
    for last in ("x", "-1", "1.5", "9" * 20):
        answer = cloud.client.get("/v1/events", headers={**stream, "Last-Event-ID": last})
        assert (answer.status_code, answer.json()["code"]) == (422, "last_event_id")
    assert cloud.client.get("/v1/events?filter=x", headers=stream).status_code == 400
    assert cloud.anyone.get("/v1/events", headers=stream).status_code == 401


def test_a_reader_that_leaves_is_forgotten(cloud):
    """When the client goes, its listener goes too."""
    feed = cloud.program.app.state.parts.get(EventLog).feed
    with _stream(cloud):
        assert len(feed._listeners) == 1
    deadline = time.monotonic() + 10
    while feed._listeners and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not feed._listeners


def test_the_server_stops_promptly_under_open_streams(cloud):
    """A stream ends, rightly closed, when the server stops; nobody waits for its reader."""
    ended = threading.Event()
    opened = threading.Event()

    def read() -> None:
        with _stream(cloud) as lines:
            opened.set()
            assert not [line for line in lines if line.startswith("data")]
        ended.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert opened.wait(10)
    began = time.monotonic()
    server, thread = cloud._server, cloud._thread
    server.stop()
    thread.join(10)
    assert ended.wait(10)
    assert time.monotonic() - began < 2.5  # uvicorn's own patience is 3 s


def test_a_quiet_stream_shows_that_it_lives(cloud):
    """Where nothing happens a comment comes now and then, so that proxies keep the line."""
    cloud.program.app.state.parts.get(EventLog).feed.keep_alive_s = 0.05
    with _stream(cloud) as lines:
        assert next(line for line in lines if line) == ": still here"


def test_the_feed_wakes_no_closed_loop():
    """A listener whose loop has gone must not stop the others from being woken."""
    import asyncio

    feed = EventFeed()
    loop = asyncio.new_event_loop()

    async def listen() -> None:
        feed.listen().__enter__()

    loop.run_until_complete(listen())
    loop.close()
    feed.ring()
    feed.close()
    assert feed.closed


def test_events_carry_the_caller_s_reason(cloud):
    """What `Edgefleet-Reason` says stands in the event of the change, umlauts and all."""
    reason = "Prüfstand 7 is moved; ask Ö."
    headers = {reasons.HEADER: reasons.encode_reason(reason)}
    body = {"name": "berlin", "selector": "id == 'cam-1'"}
    assert cloud.client.post("/v1/groups", json=body, headers=headers).status_code == 201
    (event,) = cloud.client.get("/v1/events", params={"filter": 'type == "group.created"'}).json()[
        "items"
    ]
    assert (event["reason"], event["actor"]) == (reason, "token/admin")
    body["name"] = "hamburg"
    for bad in ("%C3", "a%0Ab", "%00", "x" * 501, "%ED%A0%80"):
        answer = cloud.client.post("/v1/groups", json=body, headers={reasons.HEADER: bad})
        assert (answer.status_code, answer.json()["code"]) == (422, "reason"), bad
    assert cloud.client.get("/v1/groups/hamburg").status_code == 404


def test_events_say_what_was_and_what_is(database):
    """Before and after are kept as they were given; None is not an empty object."""
    log = EventLog(EventFeed())
    with database.write() as session:
        give_reason(session, "because")
        log.record(session, **FACT, before={"a": 1}, after={})
        log.record(session, **FACT, reason="own")
    with database.read() as session:
        rows, _ = log.page(session, PageQuery())
    assert [(r.reason, r.before, r.after) for r in rows] == [
        ("because", {"a": 1}, {}),
        ("own", None, None),
    ]
