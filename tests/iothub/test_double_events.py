"""The double's Event Hubs endpoint, driven by the unmodified azure-eventhub."""

from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from azure.eventhub import EventHubConsumerClient, TransportType
from azure.eventhub._utils import get_last_enqueued_event_properties
from azure.eventhub.exceptions import AuthenticationError, ConnectionLostError

from edgefleet_provisioning.iothub_double import events as events_module
from edgefleet_provisioning.iothub_double.service_side import entity_of
from tests.iothub.service_world import GROUPS, MemoryStore, close, reading, service_world, until


@pytest.fixture
def world(tmp_path):
    """A hub of two partitions with devices in both."""
    with service_world(tmp_path) as made:
        for name in ("d1", "d2", "d3", "d4"):
            made.hub.registry.create(name)
        assert {made.hub.log.partition_of(name) for name in ("d1", "d2", "d3", "d4")} == {0, 1}
        yield made


def _send(world, *bodies, device="d1", **properties):
    for body in bodies:
        world.hub.send_event(
            device, "", body.encode(), properties, {"content_type": "application/json"}
        )


def _partition(world, device="d1"):
    return str(world.hub.log.partition_of(device))


def _group(case):
    return GROUPS[list(_POSITIONS).index(case)]


def _ours(found):
    return [
        event.body_as_str()
        for event in found.events
        if event.system_properties[b"iothub-message-source"] == b"Telemetry"
    ]


def test_an_event_arrives_with_what_the_hub_says_of_it(world):
    """Body, properties, annotations, the partition's end; 256 KB come whole in several frames."""
    large = "x" * (256 * 1024)
    _send(world, "{}", kind="ev", stream="drift report")
    _send(world, large)
    with reading(
        world.side.events_string(world.hub), partition_id=_partition(world),
        track_last_enqueued_event_properties=True,
    ) as found:  # fmt: skip
        until(lambda: len(_ours(found)) == 2)
    assert _ours(found) == ["{}", large]
    event = next(e for e in found.events if e.body_as_str() == "{}")
    said = event.system_properties
    assert event.properties == {b"kind": b"ev", b"stream": b"drift report"}
    assert event.content_type == "application/json"
    assert said[b"iothub-connection-device-id"] == b"d1"
    assert b'"type":"sas"' in said[b"iothub-connection-auth-method"]
    assert isinstance(said[b"iothub-enqueuedtime"], int)
    assert event.partition_key == b"d1"
    last = world.hub.log.last(int(_partition(world)))
    kept = next(e for e in world.hub.log.all() if e.body == b"{}")
    assert (event.sequence_number, event.offset) == (kept.sequence, kept.offset)
    assert abs(event.enqueued_time.timestamp() - kept.enqueued) < 0.01
    assert get_last_enqueued_event_properties(event)["sequence_number"] == last.sequence
    assert not found.errors


def test_events_that_come_later_are_pushed(world):
    """A consumer that has read all gets what comes afterwards, of every partition."""
    with reading(world.side.events_string(world.hub), load_balancing_interval=0.2) as found:
        until(lambda: len(world.side.events.readers(entity_of(world.hub))) == 2)
        for number in range(250):
            _send(world, f"n{number}", device=f"d{1 + number % 4}")
        until(lambda: len(_ours(found)) == 250)
    assert sorted(_ours(found)) == sorted(f"n{number}" for number in range(250))


_POSITIONS = {
    "from the beginning": (lambda kept: "-1", False, 0),
    "behind an offset": (lambda kept: kept[1].offset, False, 2),
    "at an offset": (lambda kept: kept[1].offset, True, 1),
    "behind a sequence number": (lambda kept: kept[1].sequence, False, 2),
    "at a sequence number": (lambda kept: kept[1].sequence, True, 1),
    "behind a time": (lambda kept: datetime.fromtimestamp(kept[1].enqueued, UTC), False, 2),
}


def test_a_consumer_begins_where_it_says(world):
    """Offset, sequence number and time, each exclusive or inclusive."""
    for body in ("a", "b", "c"):
        _send(world, body)
        world.azure.clock.advance(5)
    kept = [e for e in world.hub.log.read(int(_partition(world))) if e.body in {b"a", b"b", b"c"}]
    with ExitStack() as stack:
        found = {}
        for case, (position, inclusive, _) in _POSITIONS.items():
            options = {
                "starting_position": position(kept),
                "starting_position_inclusive": inclusive,
            }
            text = world.side.events_string(world.hub)
            found[case] = stack.enter_context(
                reading(text, partition_id=_partition(world), group=_group(case), **options)
            )
        until(lambda: all("c" in _ours(one) for one in found.values()))
        close(found.values())
    for case, (_, _, first) in _POSITIONS.items():
        assert _ours(found[case]) == ["a", "b", "c"][first:], case


def test_latest_begins_behind_what_is_there(world):
    """A consumer that wants the latest is not told what came before it."""
    _send(world, "old")
    with reading(
        world.side.events_string(world.hub), partition_id=_partition(world),
        starting_position="@latest",
    ) as found:  # fmt: skip
        until(lambda: world.side.events.readers(entity_of(world.hub)))
        _send(world, "new")
        until(lambda: found.events)
    assert found.bodies() == ["new"]


def test_a_restarted_consumer_goes_on_behind_its_checkpoint(world):
    """Nothing twice and nothing lost over a restart, by a checkpoint store."""
    store, text = MemoryStore(), world.side.events_string(world.hub)
    _send(world, "a", "b")
    with reading(text, checkpoint_store=store, load_balancing_interval=0.2) as first:
        until(lambda: len(_ours(first)) == 2)
    _send(world, "c")
    with reading(text, checkpoint_store=store, load_balancing_interval=0.2) as second:
        until(lambda: "c" in _ours(second))
    assert _ours(second) == ["c"]


def test_two_consumers_share_the_partitions(world):
    """Load balancing over one store gives each of two consumers one of two partitions."""
    store, text = MemoryStore(), world.side.events_string(world.hub)
    with (
        reading(text, checkpoint_store=store, load_balancing_interval=0.2) as first,
        reading(text, checkpoint_store=store, load_balancing_interval=0.2) as second,
    ):

        def shared():
            owners = [one["owner_id"] for one in store.list_ownership()]
            return len(owners) == 2 and len(set(owners)) == 2 and all(owners)

        until(shared, "the balance")
        until(lambda: len(world.side.events.readers(entity_of(world.hub))) == 2, "two readers")
        _send(world, *[f"n{number}" for number in range(40)])
        _send(world, *[f"m{number}" for number in range(40)], device=_other_device(world))
        until(lambda: len(set(_ours(first)) | set(_ours(second))) == 80)


def _other_device(world):
    return next(f"d{n}" for n in (2, 3, 4) if _partition(world, f"d{n}") != _partition(world))


def test_a_higher_owner_level_steals_the_partition_and_a_lower_one_does_not(world):
    """The consumer with the lower level is disconnected, or does not get in, and told why."""
    text, options = world.side.events_string(world.hub), {"partition_id": _partition(world)}
    options["retry_total"] = 0
    with reading(text, owner_level=1, **options) as low:
        until(lambda: world.side.events.readers(entity_of(world.hub)) == [1])
        with reading(text, owner_level=2, **options) as high:
            until(lambda: low.errors)
            with reading(text, owner_level=1, **options) as late:
                until(lambda: late.errors)
            _send(world, "mine")
            until(lambda: "mine" in _ours(high))
    assert not _ours(late)
    for error in (low.errors[0], late.errors[0]):
        assert isinstance(error, ConnectionLostError)
        assert "amqp:link:stolen" in str(error)


def test_a_broken_connection_is_made_anew_and_nothing_is_lost(world):
    """The consumer goes on where it was when its connections are cut without a word."""
    text = world.side.events_string(world.hub)
    with reading(text, partition_id=_partition(world)) as found:
        _send(world, "a")
        until(lambda: "a" in _ours(found))
        assert world.side.events.cut() >= 1
        _send(world, "b")
        until(lambda: "b" in _ours(found))
        world.side.events.force()
        _send(world, "c")
        until(lambda: "c" in _ours(found))
    assert _ours(found) == ["a", "b", "c"]


def test_what_cannot_be_read_is_refused(world):
    """A wrong key, no right, an unknown hub or group, and an offset of another hub's log."""
    text, key = world.side.events_string(world.hub), world.hub.policies["service"]
    entity, registry = entity_of(world.hub), world.side.events_string(world.hub, "registryRead")
    asked = {
        "another policy's key": (text.replace(key, world.hub.policies["device"]), {}),
        "a policy that may not listen": (registry, {}),
        "another event hub": (text.replace(entity, "nobody"), {}),
        "an unknown consumer group": (text, {"group": "nobody"}),
        "an offset behind the end": (text, {"starting_position": "99999999"}),
    }
    with ExitStack() as stack:
        found = {
            case: stack.enter_context(reading(at, partition_id="0", retry_total=0, **options))
            for case, (at, options) in asked.items()
        }
        until(lambda: all(one.errors for one in found.values()))
        close(found.values())
    told = {case: one.errors[0] for case, one in found.items()}
    for case in list(asked)[:3]:
        assert isinstance(told[case], AuthenticationError), case
    assert isinstance(told["an unknown consumer group"], ConnectionLostError)
    assert "supplied offset" in str(told["an offset behind the end"])
    assert not any(one.events for one in found.values())


def test_a_token_that_has_expired_ends_the_link(world):
    """When the double's clock is past a token's time the link is detached as unauthorised."""
    text = world.side.events_string(world.hub)
    with reading(text, retry_total=0, partition_id=_partition(world)) as found:
        _send(world, "a")
        until(lambda: "a" in _ours(found))
        world.azure.clock.advance(2 * 3600)
        world.side.events.wake()
        until(lambda: found.errors)
        assert not world.side.events.readers(entity_of(world.hub))


def test_the_hub_tells_its_properties(world):
    """Names of partitions, and where each begins and ends."""
    _send(world, "a")
    client = EventHubConsumerClient.from_connection_string(
        world.side.events_string(world.hub), "$Default"
    )
    with client:
        assert client.get_partition_ids() == ["0", "1"]
        assert client.get_eventhub_properties()["eventhub_name"] == entity_of(world.hub)
        told = client.get_partition_properties(_partition(world))
    last = world.hub.log.last(int(_partition(world)))
    assert told["last_enqueued_sequence_number"] == last.sequence
    assert told["last_enqueued_offset"] == last.offset
    assert told["beginning_sequence_number"] == 0
    assert not told["is_empty"]


def test_an_offset_that_is_past_its_retention_begins_at_the_oldest_event(tmp_path, monkeypatch):
    """What is no longer kept is skipped; a consumer is not refused for it."""
    monkeypatch.setattr(events_module, "KEPT", 5)
    with service_world(tmp_path) as world:
        world.hub.registry.create("d1")
        _send(world, *"abcdefghij")
        with reading(
            world.side.events_string(world.hub), partition_id=_partition(world),
            starting_position="0",
        ) as found:  # fmt: skip
            until(lambda: "j" in _ours(found))
    assert _ours(found) == list("fghij")


def test_events_come_over_tls_too(tmp_path):
    """Without the emulator's flag the same endpoint is served over TLS."""
    with service_world(tmp_path, tls=True) as world:
        world.hub.registry.create("d1")
        _send(world, "a")
        with reading(
            world.side.events_string(world.hub, tls=True),
            partition_id=_partition(world),
            connection_verify=str(world.ca),
            custom_endpoint_address=f"sb://127.0.0.1:{world.side.events.tls_port}",
        ) as found:
            until(lambda: "a" in _ours(found))


def test_entra_tokens_open_the_event_hub(tmp_path):
    """A client with the role to receive reads over TLS; one without it is refused."""
    with service_world(tmp_path, tls=True) as world, ExitStack() as stack:
        world.hub.registry.create("d1")
        _send(world, "a")
        found = {}
        for name, role in (("in", "Azure Event Hubs Data Receiver"), ("out", "Contributor")):
            secret = world.side.issuer.register(name, role)
            credential = stack.enter_context(world.credential(name, secret))
            client = EventHubConsumerClient(
                "127.0.0.1", entity_of(world.hub), "$Default", credential,
                custom_endpoint_address=f"sb://127.0.0.1:{world.side.events.tls_port}",
                connection_verify=str(world.ca), retry_total=0, transport_type=TransportType.Amqp,
            )  # fmt: skip
            found[name] = stack.enter_context(reading(client, partition_id=_partition(world)))
        until(lambda: "a" in _ours(found["in"]) and found["out"].errors)
        close(found.values())
        assert isinstance(found["out"].errors[0], AuthenticationError)
        assert not found["out"].events
