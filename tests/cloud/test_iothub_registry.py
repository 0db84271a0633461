"""A hub's registry follows the fleet: who enrols is in, who is revoked is out, in the end."""

from __future__ import annotations

import pytest
from sqlmodel import select

from edgefleet_cloud.events.tables import EventRow
from edgefleet_cloud.iothub import repository
from edgefleet_cloud.iothub.tables import ABSENT, DISABLED, ENABLED, UNKNOWN
from edgefleet_provisioning.iothub_double.refusals import HubError
from tests.brokers import until
from tests.cloud.hub_world import HubWorld


@pytest.fixture
def world(database):
    """A hub whose registry is kept."""
    made = HubWorld(database).start()
    yield made
    made.transport.stop()


def expect(world: HubWorld, device: str, status: str = UNKNOWN) -> None:
    """Note a device as enrolment does, and have the registry look."""
    with world.database.write() as session:
        repository.change(session, device, world.name, "2026-01-31T12:00:00.000Z", status=status)
    world.transport.disconnect(device)


def status(world: HubWorld, device: str) -> str:
    """Return what the registry says of a device."""
    found = {each.device: each.status for each in world.state.registry.all()}
    return found.get(device, ABSENT)


def test_a_device_that_enrols_is_created(world):
    """It proves itself by a certificate of the fleet's authority; one request does it."""
    world.enroll("cam-1", known=False)
    expect(world, "cam-1")
    until(lambda: world.row("cam-1").status == ENABLED)
    assert world.state.registry.get("cam-1").auth == "certificateAuthority"
    assert world.rest.calls == [("put", "cam-1")]


def test_a_device_that_somebody_created_is_left_as_it_is(world):
    """How it proves itself there is its owner's choice."""
    world.enroll("cam-1", known=False)
    world.state.registry.create("cam-1", auth="sas")
    expect(world, "cam-1")
    until(lambda: world.row("cam-1").status == ENABLED)
    assert world.state.registry.get("cam-1").auth == "sas"


def test_revocation_disables_and_enrolment_enables_again(world):
    """The identity stays, with its way to prove itself."""
    world.enroll("cam-1")
    expect(world, "cam-1", ENABLED)
    world.set_state("cam-1", "revoked")
    world.transport.disconnect("cam-1")
    until(lambda: world.row("cam-1").status == DISABLED)
    assert status(world, "cam-1") == DISABLED
    world.set_state("cam-1", "enrolled")
    world.transport.disconnect("cam-1")
    until(lambda: world.row("cam-1").status == ENABLED)
    assert status(world, "cam-1") == ENABLED
    assert world.state.registry.get("cam-1").auth == "certificateAuthority"


def test_decommission_deletes(world):
    """Identity and twin are gone, and what the twin held is forgotten."""
    world.enroll("cam-1")
    expect(world, "cam-1", ENABLED)
    world.set_state("cam-1", "decommissioned")
    world.transport.disconnect("cam-1")
    until(lambda: world.row("cam-1").status == ABSENT)
    assert status(world, "cam-1") == ABSENT
    assert world.row("cam-1").content == ""


def test_it_is_tried_until_it_is_done(world):
    """A hub that is away is told when it is back."""
    world.enroll("cam-1")
    expect(world, "cam-1", ENABLED)
    world.rest.up = False
    world.set_state("cam-1", "revoked")
    world.transport.disconnect("cam-1")
    until(lambda: ("get", "cam-1") in world.rest.calls)
    assert status(world, "cam-1") == ENABLED
    world.rest.up = True
    until(lambda: status(world, "cam-1") == DISABLED)


def test_what_a_dead_process_left_is_done_at_the_next_start(database):
    """The device's state and the row say what is missing; nobody has to ask."""
    first = HubWorld(database)
    first.enroll("cam-1")
    with database.write() as session:
        repository.change(session, "cam-1", "main", "2026-01-31T12:00:00.000Z", status=ENABLED)
    first.set_state("cam-1", "revoked")
    second = first.another().start()
    until(lambda: status(second, "cam-1") == DISABLED)
    second.transport.stop()


def test_a_throttled_registry_is_waited_for(world):
    """A 429 is no failure: all are done in the end."""
    world.state.throttles.set("registry", 2, 0.2)
    names = [f"d-{n}" for n in range(4)]
    world.enroll(*names, known=False)
    for name in names:
        expect(world, name)
    until(lambda: {status(world, name) for name in names} == {ENABLED}, 20)
    assert world.state.throttles.counts()["registry"]["throttled"] > 0


def test_who_is_to_be_shut_out_comes_first(world):
    """A thousand new devices do not keep a stolen one in."""
    world.rest.up = False
    names = [f"d-{n}" for n in range(150)]
    world.enroll(*names, known=False)
    world.enroll("stolen")
    for name in names:
        expect(world, name)
    expect(world, "stolen", ENABLED)
    world.set_state("stolen", "revoked")
    with world.database.read() as session:
        first = repository.work(session, "main", 100)[0]
    assert (first.device, first.wanted) == ("stolen", DISABLED)


def test_a_refusal_of_one_does_not_hold_up_others(world):
    """Whoever cannot be created is tried again later; the event log tells of the others."""
    world.enroll("bad-1", "good-1", known=False)
    create = world.state.registry.create

    def refuse(device: str, **more: object):
        if device == "bad-1":
            raise HubError(400, "ArgumentInvalid", "not this one")
        return create(device, **more)

    world.state.registry.create = refuse
    expect(world, "bad-1")
    expect(world, "good-1")
    until(lambda: status(world, "good-1") == ENABLED)
    assert status(world, "bad-1") == ABSENT
    world.state.registry.create = create
    until(lambda: status(world, "bad-1") == ENABLED)


def test_what_a_comparison_finds_is_put_right(world):
    """Somebody has enabled a revoked device in the portal: it is disabled again."""
    world.enroll("cam-1", state="revoked")
    expect(world, "cam-1", DISABLED)
    assert status(world, "cam-1") == ENABLED
    world.registry.correct("cam-1", ENABLED)
    until(lambda: status(world, "cam-1") == DISABLED)
    world.registry.correct("nobody", ENABLED)  # not one of ours: left alone


def test_each_change_is_in_the_fleets_log(world):
    """Who looks for a device's history finds what its hub was told."""
    world.enroll("cam-1", known=False)
    expect(world, "cam-1")
    until(lambda: world.row("cam-1").status == ENABLED)
    with world.database.read() as session:
        found = session.exec(select(EventRow).where(EventRow.subject == "devices/cam-1")).all()
    assert [(each.type, each.data["hub"]) for each in found] == [("device.hub_enabled", "main")]
