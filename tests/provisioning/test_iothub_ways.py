"""`device enroll`, `ticket` and `group-ticket` with `--iothub`: what the fleet manager is asked."""

from __future__ import annotations

import pytest

TICKET = {"ticket": "EF1-x", "not_after": "2026-01-01T00:00:00Z"}
HUBS = {"none": [], "one": ["east"], "two": ["east", "west"], "default": ["east", "west*"]}


@pytest.fixture
def asked(api):
    """The fleet manager; called with names of hubs, `*` behind the default one, it has them."""
    api.answers[("POST", "/v1/devices")] = (201, {"id": "cam-1", "labels": {}})
    api.answers[("POST", "/v1/devices/cam-1/tickets")] = (201, TICKET)
    api.answers[("POST", "/v1/group-tickets")] = (201, {**TICKET, "id": "t"})

    def have(names):
        items = [{"name": n.rstrip("*"), "default": n.endswith("*")} for n in names]
        api.answers[("GET", "/v1/iothubs")] = (200, {"items": items})
        return api

    return have


def told(api):
    """Return the body of the last request for a ticket."""
    return [body for method, path, body in api.asked if "ticket" in path and method == "POST"][-1]


@pytest.mark.parametrize(
    ("hubs", "options", "way"),
    [
        ("one", ["--iothub"], "east"),
        ("default", ["--iothub"], "west"),
        ("two", ["--hub", "east"], "east"),
        ("two", ["--iothub", "--hub", "west"], "west"),
        ("default", ["--mqtt"], "mqtt"),
        ("default", [], None),
    ],
)
@pytest.mark.parametrize(
    "command",
    ["device enroll cam-1", "device ticket cam-1", "device group-ticket cam --limit 3"],
)
def test_the_way_is_what_was_asked_for(operator, asked, command, hubs, options, way):
    """The only hub, the default one, the named one, MQTT, or the fleet manager's own choice."""
    api = asked(HUBS[hubs])
    shown = operator.run(*command.split(), *options)
    assert told(api).get("way") == way
    assert ("edgefleet-agent[iothub]" in shown.stderr) == (way not in {None, "mqtt"})


def test_a_hub_that_is_not_clear_is_asked_for(operator, asked):
    """With none or several hubs nothing is made, and the hint says what to write."""
    api = asked(HUBS["two"])
    unclear = operator.error("device", "enroll", "cam-1", "--iothub")
    assert unclear["code"] == "unknown_way"
    assert "east, west" in unclear["message"]
    asked(HUBS["none"])
    assert "[[iothub]]" in operator.error("device", "ticket", "cam-1", "--iothub")["hint"]
    both = operator.error("device", "ticket", "cam-1", "--mqtt", "--hub", "east")
    assert both["code"] == "usage"
    assert not [path for method, path, _ in api.asked if method == "POST"]


def test_a_device_is_admitted_and_told_what_to_write(operator, api):
    """`iothub admit` asks the fleet manager, and says what goes into agent.toml."""
    answer = {"hub": "east", "device": "cam-1", "url": "iothub://east.azure-devices.net"}
    api.answers["PUT", "/v1/iothubs/east/devices/cam-1"] = (202, answer)
    assert operator.json("iothub", "admit", "east", "cam-1") == answer
    shown = operator.run("iothub", "admit", "east", "cam-1").stdout
    assert 'url = "iothub://east.azure-devices.net"' in shown
