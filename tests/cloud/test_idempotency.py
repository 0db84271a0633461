"""Idempotency-Key: what is repeated happens once."""

from __future__ import annotations

import threading

import pytest

from tests.cloud.access_world import caller

BODY = {"name": "digits", "description": "first"}


def _create(cloud, key, body=BODY, **headers):
    return cloud.client.post("/v1/models", json=body, headers={"Idempotency-Key": key, **headers})


def _refused(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_a_repeated_post_is_answered_alike(cloud):
    """The second of two equal requests with one key gets the first one's answer."""
    first = _create(cloud, "k1")
    again = _create(cloud, "k1")
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"


def test_it_survives_a_restart(cloud):
    """A client that repeats its request to a restarted server is answered as before."""
    first = _create(cloud, "k1")
    cloud.stop()
    cloud.start()
    assert _create(cloud, "k1").content == first.content


def test_a_key_is_for_one_request(cloud):
    """The same key with another body, or on another route, is refused."""
    _create(cloud, "k1")
    _refused(_create(cloud, "k1", {"name": "other"}), 422, "idempotency_mismatch")
    answer = cloud.client.post(
        "/v1/groups",
        json={"name": "all", "selector": "id like '*'"},
        headers={"Idempotency-Key": "k1"},
    )
    _refused(answer, 422, "idempotency_mismatch")
    assert len(cloud.client.get("/v1/models").json()["items"]) == 1


def test_without_a_key_nothing_is_remembered(cloud):
    """Two equal requests without a key, or with two, are two requests."""
    assert cloud.client.post("/v1/models", json=BODY).status_code == 201
    _refused(cloud.client.post("/v1/models", json=BODY), 409, "already_exists")
    _refused(_create(cloud, "k2"), 409, "already_exists")


def test_a_refused_request_may_be_repeated(cloud):
    """What was refused changed nothing, so its key is free for the same request later."""
    assert cloud.client.post("/v1/models", json=BODY).status_code == 201
    _refused(_create(cloud, "k1"), 409, "already_exists")
    with cloud.program.database.write() as session:
        session.connection().exec_driver_sql("DELETE FROM models")
    assert _create(cloud, "k1").status_code == 201


def test_a_replay_needs_the_token(cloud):
    """Somebody without a token is not shown another's answer."""
    _create(cloud, "k1")
    answer = cloud.anyone.post("/v1/models", json=BODY, headers={"Idempotency-Key": "k1"})
    _refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_bad_keys(cloud, key):
    """A key that is empty or too long is refused before anything happens."""
    _refused(_create(cloud, key), 400, "idempotency_key")
    assert cloud.client.get("/v1/models").json()["items"] == []


def test_at_once(cloud):
    """Of many equal requests at the same time, one happens; no other answer contradicts it."""
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(_create(cloud, "k1"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a.status_code for a in answers} <= {201, 409}
    assert len({a.content for a in answers if a.status_code == 201}) == 1
    assert {a.json()["code"] for a in answers if a.status_code == 409} <= {"idempotency_unknown"}


def test_a_lost_answer_is_not_invented(cloud):
    """If the server died between the effect and the answer, a repetition is told so."""
    _create(cloud, "k1")
    with cloud.program.database.write() as session:
        session.connection().exec_driver_sql("UPDATE idempotency_keys SET status = 0")
    _refused(_create(cloud, "k1"), 409, "idempotency_unknown")


def test_a_body_beyond_the_limit_is_refused(cloud):
    """A JSON body larger than any request needs is refused, with a hint to the uploads."""
    large = cloud.config.limits.body_max_bytes + 1
    answer = cloud.client.post("/v1/models", content=b" " * large)
    _refused(answer, 413, "too_large")
    assert cloud.client.get("/v1/models").status_code == 200


def test_another_caller_has_keys_of_its_own(cloud):
    """The same key and body from somebody else are their own request, with its own answer."""
    first = _create(cloud, "k1")
    assert first.status_code == 201
    other = caller(cloud, "other", "admin")
    answer = other.post("/v1/models", json=BODY, headers={"Idempotency-Key": "k1"})
    _refused(answer, 409, "already_exists")
    assert "idempotent-replayed" not in answer.headers


def test_an_answer_is_not_shown_to_who_may_no_longer_ask(cloud):
    """A caller is authorised anew before an answer is repeated."""
    other = caller(cloud, "other", "admin")
    send = {"json": BODY, "headers": {"Idempotency-Key": "k1"}}
    assert other.post("/v1/models", **send).status_code == 201
    cloud.client.delete("/v1/tokens/other")
    assert other.post("/v1/models", **send).status_code == 401


def test_a_stored_answer_tells_a_thief_nothing(cloud):
    """The database keeps the answer that showed a token or a ticket, but not in the clear."""
    key = {"Idempotency-Key": "k1"}
    made = cloud.client.post("/v1/tokens", json={"name": "ci"}, headers=key)
    again = cloud.client.post("/v1/tokens", json={"name": "ci"}, headers=key)
    assert again.json() == made.json()
    cloud.client.post("/v1/devices", json={"id": "cam-1"})
    ticket = cloud.client.post("/v1/devices/cam-1/tickets", json={}, headers=key | {
        "Idempotency-Key": "k2"}).json()["ticket"]  # fmt: skip
    stored = b"".join(path.read_bytes() for path in cloud.config.data.glob("fleet.db*"))
    assert b"idempotency_keys" in stored
    assert made.json()["token"].encode() not in stored
    assert ticket.encode() not in stored
