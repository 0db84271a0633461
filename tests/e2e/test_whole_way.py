"""The whole way of one model over real parts: what ran where, and what undoes itself."""

from __future__ import annotations

from tests.e2e.world import World, until


def test_a_misbehaving_version_undoes_itself_and_stops_the_rollout(world: World):
    """3.0.0 goes to the canary, misbehaves under load, comes back; cam-2 never sees it."""
    before = world.version("cam-1"), world.version("cam-2")
    with world.load("cam-1") as client, world.load("cam-2"):
        rollout = world.roll_out("3.0.0", "--canary", "cam-1", "--probation-s", "5")
    assert rollout["state"] == "stopped"
    assert (world.version("cam-1"), world.version("cam-2")) == before
    assert client.errors == []
    states = {
        d["device"]: d["state"]
        for d in world.fleet.get(f"/v1/rollouts/{rollout['id']}/device-deployments")["items"]
    }
    assert states["cam-1"] == "rolled_back"
    history = world.fleet.get("/v1/devices/cam-2/history", slot="digits")["items"]
    assert all(entry["version"] != "3.0.0" for entry in history)


def test_desired_and_reported_agree_after_a_rollback(world: World):
    """After the canary went back, the fleet manager wants what the device runs."""
    until(
        "desired == reported",
        lambda: all(world.fleet.get(f"/v1/devices/{n}/state")["in_sync"] for n in world.names),
    )


def test_which_digest_ran_at_a_given_time_is_answered_from_receipts(world: World):
    """Every entry of the history is found again by asking for its moment."""
    until(
        "two entries of history",
        lambda: len(world.fleet.get("/v1/devices/cam-1/history", slot="digits")["items"]) > 1,
    )
    for entry in world.fleet.get("/v1/devices/cam-1/history", slot="digits")["items"]:
        found = world.fleet.get("/v1/devices/cam-1/history", slot="digits", at=entry["from"])
        assert [e["digest"] for e in found["items"]] == [entry["digest"]]


def test_telemetry_counts_what_was_asked(world: World):
    """The fleet manager's count for a device grows by what its application asked."""

    def count() -> int:
        windows = world.fleet.get("/v1/telemetry", slot="digits", device="cam-1")["items"]
        return sum(window["requests"] for window in windows)

    before = until("the windows of earlier tests", count)
    with world.load("cam-1") as client:
        until("300 answers", lambda: len(client.rows) >= 300)
    seen = len(client.rows)
    until(f"{seen} more requests in telemetry", lambda: count() >= before + seen)
