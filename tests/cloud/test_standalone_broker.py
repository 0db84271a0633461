"""A broker that is not ours: its files, its revocation lists, and what the fleet manager renews."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from edgefleet_cloud.__main__ import main
from edgefleet_cloud.authority.issuing import DeviceCa
from edgefleet_cloud.authority.service import Certificates
from edgefleet_cloud.broker import mosquitto
from edgefleet_cloud.broker.credentials import Credentials, write_pair
from edgefleet_cloud.broker.mosquitto import MtlsPaths
from edgefleet_cloud.broker.probe import free_port
from edgefleet_cloud.devices.tables import ENROLLED, DeviceRow
from edgefleet_shared import topics
from tests.brokers import NEEDS_MOSQUITTO, Client, SecureBroker, _Nobody, make_authority, until
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder


class Standalone:
    """mosquitto elsewhere, as the documents say it is set up, and the fleet manager beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.files = folder / "mq"
        self.files.mkdir()
        pid = self.files / "pid"
        self.fleet = FleetFolder(folder / "fleet")
        settings = (
            f'url = "mqtts://127.0.0.1:{self.port}"\n'
            f'crl_file = "{self.files / "crl.pem"}"\n'
            f"reload = \"bash -c 'kill -HUP $(cat {pid})'\"\n"
        )
        text = self.fleet.config.read_text()
        line = next(each for each in text.splitlines() if each.startswith('url = ""'))
        self.fleet.config.write_text(text.replace(line + "\n", settings))
        self.cloud = RunningCloud(self.fleet, background=True)
        self.keys = self.fleet.online / "keys"
        options = ["--config", self.fleet.config, "--name", "127.0.0.1", "--output", self.files]
        assert main(["broker-certificate", *map(str, options)]) == 0
        names = ("ca.crt", "server.crt", "server.key", "crl.pem", "acl.txt")
        paths = MtlsPaths(*(str(self.files / name) for name in names), str(self.files))
        user = "user root\n" if os.geteuid() == 0 else ""
        config = self.files / "here.conf"
        config.write_text(f"{user}pid_file {pid}\n{mosquitto.mtls_config(paths, self.port)}")
        with (folder / "log").open("wb") as log:
            command = [str(mosquitto.executable()), "-c", str(config)]
            self.process = subprocess.Popen(command, stderr=log, stdout=log)

    def device(self, name: str) -> Path:
        """Return a file with the key and certificate of an enrolled device."""
        database, pair = self.cloud.program.database, self.folder / f"{name}.pem"
        authority = Certificates("demo", DeviceCa.load(self.keys), _Nobody())
        with database.write() as session:
            session.add(DeviceRow(id=name, created="", hardware="x", state=ENROLLED, key="k"))
            session.flush()
            write_pair(pair, lambda key: authority.issue(session, name, key))
        return pair

    def client(self, pair: Path) -> Client:
        """Connect."""
        return Client(self.keys / "device-ca.crt", self.port, pair, "any", connect=False)

    def close(self) -> None:
        """End both."""
        self.cloud.stop()
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def standalone(tmp_path) -> Iterator[Standalone]:
    """A fleet manager and a broker that it did not start."""
    made = Standalone(tmp_path)
    yield made
    made.close()


@NEEDS_MOSQUITTO[0]
@NEEDS_MOSQUITTO[1]
def test_a_broker_elsewhere_is_set_up_by_one_command(standalone: Standalone):
    """It takes the fleet manager and devices; revoked ones are out once it has read the list."""
    key = standalone.files / "server.key"
    assert key.stat().st_mode & 0o777 == 0o600
    device = standalone.client(standalone.device("cam-1"))
    assert device.joined.wait(10)
    device.subscribe(topics.down("cam-1"))
    fetched = standalone.cloud.anyone.get("/v1/authority/crl").content
    assert fetched == (standalone.files / "crl.pem").read_bytes()
    answer = standalone.cloud.client.post("/v1/devices/cam-1/revoke", json={})
    assert answer.status_code == 200, answer.text
    assert device.dropped.wait(30)
    again = standalone.client(standalone.folder / "cam-1.pem")
    assert again.out()
    assert not again.joined.is_set()
    assert standalone.cloud.anyone.get("/v1/authority/crl").content != fetched
    bundle = standalone.cloud.anyone.get("/v1/authority/certificates").content
    assert bundle == (standalone.keys / "device-ca.crt").read_bytes()
    for client in (device, again):
        client.close()


def test_a_broker_that_reads_no_list_gets_the_device_thrown_out_again(tmp_path, monkeypatch):
    """Not done until the list is read: it stays pending, and is done once the broker reads it."""
    monkeypatch.setattr("edgefleet_cloud.broker.disconnect.IN_FORCE_S", 0.3)
    monkeypatch.setattr("edgefleet_cloud.broker.disconnect.RETRY_S", 0.5)
    world = SecureBroker("auto", tmp_path)
    world.start()
    transport = world.manager()
    transport.start(lambda _topic, _payload: None)
    assert transport.wait_connected(10)
    deaf = world.lists._places._replace(reload=lambda: None)
    world.lists._places, hears = deaf, world.lists._places
    disconnections = world.disconnections(transport)
    disconnections._thread.start()
    try:
        pair = world.issue("cam-1")
        world.revoke("cam-1")
        for _ in range(2):
            with world.client(pair) as device:
                disconnections.disconnect("cam-1")
                assert device.dropped.wait(10)
        assert disconnections.pending()
        world.lists._places = hears
        until(lambda: not disconnections.pending())
    finally:
        disconnections._over = True
        transport.stop()
        world.close()


def test_certificates_are_renewed_before_they_end_and_for_new_names(tmp_path):
    """Nothing changes for twenty days; then all are new; a new name or authority is taken up."""
    make_authority(tmp_path / "keys")
    offset = timedelta()

    def made(names: list[str]) -> Credentials:
        return Credentials(
            lambda: DeviceCa.load(tmp_path / "keys"), tmp_path / "broker", names,
            lambda: datetime.now(UTC) + offset,
        )  # fmt: skip

    known = made(["127.0.0.1"])
    assert known.renew()
    files = (known.manager, known.probe, known.server)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    before = [path.read_bytes() for path in files]
    offset = timedelta(days=19)
    assert not known.renew()
    offset = timedelta(days=21)
    assert known.renew()
    assert all(path.read_bytes() != old for path, old in zip(files, before, strict=True))
    before = [path.read_bytes() for path in files]
    assert made(["127.0.0.1", "mq.example.com"]).renew()
    assert [path.read_bytes() == old for path, old in zip(files, before, strict=True)] == [
        True, True, False,
    ]  # fmt: skip
    make_authority(tmp_path / "keys")
    assert known.renew()
    shown = x509.load_pem_x509_certificate(known.manager.read_bytes())
    shown.verify_directly_issued_by(DeviceCa.load(tmp_path / "keys").issuers[0].certificate)


def test_lists_of_one_second_are_told_apart(tmp_path):
    """Each is dated later than the one before, for of two the later-dated one counts."""
    world = SecureBroker("amqtt", tmp_path)
    world.credentials.renew()
    dates = []
    for _ in range(3):
        world.lists.publish()
        found = x509.load_pem_x509_crl(world.lists.path.read_bytes())
        dates.append(found.last_update_utc)
        assert found.last_update_utc <= datetime.now(UTC)
    assert dates == sorted(set(dates))
    world.database.close()
