"""The agent as a module of IoT Edge: its deployment manifest, and what its twin may set."""

from __future__ import annotations

import json
import logging

import pytest

from edgefleet_agent import cli, config
from edgefleet_agent.identity import TransportInfo
from edgefleet_agent.twin_settings import Live
from edgefleet_agent.ways import way_of


def printed(capsys, *arguments: str):
    """Return what the command prints, as JSON."""
    assert cli.main(["iotedge", "manifest", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def options(module: dict) -> dict:
    """Return a module's create options, joined as the runtime joins them."""
    settings = module["settings"]
    names = sorted(name for name in settings if name.startswith("createOptions"))
    assert all(len(settings[name]) <= 512 for name in names), "the twin's limit"
    return json.loads("".join(settings[name] for name in names))


def test_a_layered_manifest_adds_the_module_and_touches_nothing_else(capsys):
    """One module and one route by their paths; its twin, the fleet manager's, is absent."""
    content = printed(capsys, "--layered", "--json")["modulesContent"]
    assert set(content) == {"$edgeAgent", "$edgeHub"}
    assert set(content["$edgeAgent"]) == {"properties.desired.modules.edgefleet"}
    assert content["$edgeHub"] == {
        "properties.desired.routes.edgefleet": "FROM /messages/modules/edgefleet/* INTO $upstream"
    }
    module = content["$edgeAgent"]["properties.desired.modules.edgefleet"]
    assert module["restartPolicy"] == "always"
    assert module["env"]["EDGEFLEET_AGENT_IOTHUB_AUTH"]["value"] == "edge"
    host = options(module)["HostConfig"]
    assert host["Binds"] == ["edgefleet-state:/var/lib/edgefleet", "edgefleet-run:/run/edgefleet"]
    assert not {"Memory", "Devices", "DeviceRequests", "GroupAdd"} & set(host)
    assert options(module)["Healthcheck"]["Test"] == ["CMD", "edgefleet-agent", "status"]


def test_a_full_manifest_has_the_runtimes_own_modules(capsys):
    """EdgeAgent and edgeHub with their images; lines for people are the same JSON."""
    content = printed(capsys, "--module", "ai", "--image", "registry/agent:1")["modulesContent"]
    desired = content["$edgeAgent"]["properties.desired"]
    assert set(desired["systemModules"]) == {"edgeAgent", "edgeHub"}
    assert desired["modules"]["ai"]["settings"]["image"] == "registry/agent:1"
    assert content["$edgeHub"]["properties.desired"]["routes"]["ai"].startswith("FROM /messages")


def test_accelerators_memory_sockets_and_the_twin_are_as_asked_for(capsys, tmp_path):
    """GPUs, device nodes with their groups, a shared folder, a limit, a ticket, two settings."""
    ticket = tmp_path / "ticket"
    ticket.write_text("the-ticket\n")
    content = printed(
        capsys, "--layered", "--gpu", "--device", "/dev/dri/renderD128", "--device", "/dev/apex_0",
        "--group", "104", "--memory-mb", "2048", "--socket-dir", "/var/edgefleet",
        "--ticket-file", str(ticket), "--telemetry-interval-s", "30", "--log-level", "DEBUG",
    )["modulesContent"]  # fmt: skip
    host = options(content["$edgeAgent"]["properties.desired.modules.edgefleet"])["HostConfig"]
    assert host["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert [d["PathOnHost"] for d in host["Devices"]] == ["/dev/dri/renderD128", "/dev/apex_0"]
    assert host["GroupAdd"] == ["104"]
    assert host["Memory"] == 2 * 1024**3
    assert "/var/edgefleet:/run/edgefleet" in host["Binds"]
    assert content["edgefleet"] == {
        "properties.desired.edgefleet.ticket": "the-ticket",
        "properties.desired.edgefleet.config": {"telemetry_interval_s": 30.0, "log_level": "DEBUG"},
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--module", "a.b"], "cannot be a module's id"),
        (["--device", "renderD128"], "no device node"),
        (["--group", "video"], "no group's id"),
        (["--socket-dir", "a:b"], "no place"),
        (["--memory-mb", "-1"], "not negative"),
        (["--ticket-file", "/nowhere"], "cannot be read"),
        ([f"--device=/dev/{'x' * 300}{n}" for n in range(9)], "too large for a twin"),
        (["erase"], "invalid choice"),
    ],
)
def test_what_no_manifest_can_hold_is_refused_with_a_hint(capsys, arguments, says):
    """Exit 2, and nothing that looks like a manifest."""
    assert cli.main(["iotedge", *(["manifest"] if arguments != ["erase"] else []), *arguments]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert not shown.out


def test_the_environment_of_a_module_makes_it_one():
    """No file is needed in the image: one variable, and the runtime says the rest."""
    found = config.load(None, {"EDGEFLEET_AGENT_IOTHUB_AUTH": "edge"})
    assert found.iothub.auth == "edge"
    way = way_of(found, TransportInfo("mqtt", "mqtts://broker"))
    assert (way.kind, way.mendable) == ("iothub", False)
    moved = config.load(None, {
        "EDGEFLEET_AGENT_IOTHUB_AUTH": "edge", "EDGEFLEET_AGENT_TRANSPORT_KIND": "mqtt",
    })  # fmt: skip
    assert way_of(moved, TransportInfo("mqtt", "mqtts://broker")).kind == "mqtt"


@pytest.fixture
def live(tmp_path):
    """Settings of a device that logs at INFO, with a window of a minute."""
    before = logging.getLogger("edgefleet").level
    yield Live(config.Config(), tmp_path / "twin.json")
    logging.getLogger("edgefleet").setLevel(before)


def test_the_twin_sets_a_few_things_and_takes_them_back(live, tmp_path):
    """Whole or as a patch; null and absence mean what the configuration says; a start remembers."""
    live.heed({"config": {"telemetry_interval_s": 5, "log_level": "DEBUG"}}, True)
    assert live.interval_s == 5
    assert logging.getLogger("edgefleet").level == logging.DEBUG
    live.heed({"document": {}}, False)
    live.heed({"config": {"log_level": None}}, False)
    assert live.interval_s == 5
    assert logging.getLogger("edgefleet").level == logging.INFO
    assert Live(config.Config(), tmp_path / "twin.json").interval_s == 5
    live.heed({}, True)
    assert live.interval_s == 60
    assert Live(config.Config(), None).interval_s == 60


@pytest.mark.parametrize(
    "bad",
    [
        {"telemetry_interval_s": 0}, {"telemetry_interval_s": "often"}, {"log_level": "LOUD"},
        {"state_dir": "/tmp"}, {"telemetry_interval_s": 30, "inference": {"tcp": "0.0.0.0:1"}},
    ],
)  # fmt: skip
def test_what_the_twin_may_not_set_changes_nothing(live, tmp_path, bad):
    """Nor does it become part of what is remembered; the next good one is taken."""
    live.heed({"config": {"telemetry_interval_s": 5}}, True)
    live.heed({"config": bad}, True)
    assert live.interval_s == 5
    assert json.loads((tmp_path / "twin.json").read_text()) == {"telemetry_interval_s": 5}
    live.heed({"config": {"telemetry_interval_s": 7}}, True)
    assert live.interval_s == 7


def test_damaged_settings_of_the_twin_are_none(tmp_path):
    """Half a file keeps nobody from starting: the twin says it again."""
    for damaged in ('{"log_le', "[]", '{"log_level":"LOUD"}'):
        (tmp_path / "twin.json").write_text(damaged)
        assert Live(config.Config(), tmp_path / "twin.json").interval_s == 60
