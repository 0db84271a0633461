"""The `[[iothub]]` tables of cloud.toml."""

from __future__ import annotations

import pytest

from edgefleet_cloud import config
from edgefleet_shared.errors import InvalidInputError

HUB = {"name": '"main"', "host": '"fleet.azure-devices.net"', "events_file": '"events.txt"'}


def table(**more):
    """Return one table as TOML; a value is TOML too, None leaves its key out."""
    fields = {**HUB, **more}
    lines = [f"{key} = {value}" for key, value in fields.items() if value is not None]
    return "\n".join(["[[iothub]]", *lines, ""])


def load(folder, *tables, broker="", environ=None):
    """Load a configuration with these tables."""
    path = folder / "cloud.toml"
    path.write_text("\n".join(['fleet = "demo"', broker, *tables]))
    return config.load(path, environ or {})


def test_without_tables_there_is_no_hub(tmp_path):
    """A fleet on MQTT alone has nothing to say about Azure."""
    assert load(tmp_path).iothub == ()


def test_a_hub_with_files_beside_the_configuration(tmp_path):
    """Files are relative to cloud.toml; Entra ID is what no connection_file means."""
    (hub,) = load(tmp_path, table(ca='"ca.pem"')).iothub
    assert (hub.events_file, hub.ca) == (str(tmp_path / "events.txt"), str(tmp_path / "ca.pem"))
    assert hub.connection_file == ""
    assert hub.address == "iothub://fleet.azure-devices.net"
    assert hub.service_url == "https://fleet.azure-devices.net"


def test_devices_are_told_the_provisioning_service_where_there_is_one(tmp_path):
    """With a scope the address is the service's; a gateway is for the fleet manager alone."""
    hub = load(tmp_path, table(dps_scope='"0ne00AB"', gateway='"127.0.0.5:8443"')).iothub[0]
    assert hub.address == "dps://0ne00AB"
    assert hub.service_url == "https://127.0.0.5:8443"


def test_the_environment_wins_for_a_hub_that_the_file_names(tmp_path):
    """The variable spells the hub's name and key, typed as in the file."""
    environ = {
        "EDGEFLEET_CLOUD_IOTHUB_EU_WEST_UNITS": "3",
        "EDGEFLEET_CLOUD_IOTHUB_OTHER_UNITS": "9",
    }
    hub = load(tmp_path, table(name='"eu-west"'), environ=environ).iothub[0]
    assert hub.units == 3


def test_several_hubs_one_of_them_the_default(tmp_path):
    """Hubs stand side by side."""
    hubs = load(
        tmp_path, table(default="true"), table(name='"two"', host='"two.azure-devices.net"')
    ).iothub
    assert [(hub.name, hub.default) for hub in hubs] == [("main", True), ("two", False)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": '"mqtt"'}, "names the broker"),
        ({"name": '"Main Hub"'}, "cannot name"),
        ({"host": '"https://fleet.azure-devices.net"'}, "host"),
        ({"gateway": '"https://x"'}, "gateway"),
        ({"dps_scope": '"a b"'}, "dps_scope"),
        ({"events_file": None}, "events_file is missing"),
        ({"units": "0"}, "units"),
        ({"sync_s": "1"}, "sync_s"),
        ({"inline_max": "99999"}, "inline_max"),
        ({"tier": '"B1"'}, "tier"),
        ({"key": '"secret"'}, "key"),
        ({"host": None}, "host"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(tmp_path, fields, says):
    """The message names the key, before anything is opened."""
    with pytest.raises(InvalidInputError, match=says):
        load(tmp_path, table(**fields))


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"host": '"two.azure-devices.net"'}, "the name"),
        ({"name": '"two"'}, "the host"),
        ({"name": '"two"', "host": '"two.x"', "default": "true"}, "more than one"),
    ],
)
def test_two_hubs_that_cannot_be_told_apart_are_refused(tmp_path, second, says):
    """A device's way is a name, a message's way is a host, and there is one default."""
    with pytest.raises(InvalidInputError, match=says):
        load(tmp_path, table(default="true"), table(**second))


def test_no_broker_needs_a_default_hub(tmp_path):
    """Without a broker new devices must be told something else."""
    none = '[broker]\nkind = "none"'
    assert load(tmp_path, table(default="true"), broker=none).broker.kind == "none"
    with pytest.raises(InvalidInputError, match="default = true"):
        load(tmp_path, table(), broker=none)
    with pytest.raises(InvalidInputError, match="no url"):
        load(tmp_path, table(default="true"), broker=none + '\nurl = "mqtt://x:1883"')
