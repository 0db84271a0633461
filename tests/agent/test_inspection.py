"""The commands of whoever stands beside the device, each over a real agent or what it left."""

from __future__ import annotations

import json
import signal
import tarfile
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from edgefleet_agent.cli import main
from edgefleet_agent.inspection import infer
from edgefleet_agent.inspection.collect import redact
from edgefleet_agent.inspection.locking import parse_duration
from edgefleet_agent.swap_lock import SwapLock
from edgefleet_shared.errors import InvalidInputError
from tests.agent.running import Agent
from tests.agent.world import World, until


@pytest.fixture
def world():
    """A fleet with keys of its own."""
    world = World()
    yield world
    world.close()


@pytest.fixture
def agent(world):
    """A running agent whose configuration is a file too."""
    agent = Agent(world)
    (agent.folder / "agent.toml").write_text(
        f'state_dir = "{agent.folder}/state"\nrun_dir = "{agent.run_dir}"\n'
    )
    agent.start()
    # agentd is this process here, and the commands signal it.
    before = signal.signal(signal.SIGUSR2, lambda *_: agent.daemon.look_into_inbox())
    yield agent
    agent.close()
    signal.signal(signal.SIGUSR2, before)


def serve(agent, world, version="1.0.0"):
    """Bring a version to success."""
    slot = world.publish(version)
    agent.assign(slot)
    agent.reaches("succeeded")
    return slot


def ask(agent, capsys, *arguments):
    """Run a command; return its exit status and its JSON, or what it complains of."""
    capsys.readouterr()
    status = main([*arguments, "--config", str(agent.folder / "agent.toml"), "--json"])
    return status, json.loads(capsys.readouterr().out)


def lines(agent, capsys, *arguments):
    """Run a command for people; return its exit status and its lines."""
    capsys.readouterr()
    status = main([*arguments, "--config", str(agent.folder / "agent.toml")])
    out, err = capsys.readouterr()
    return status, (out + err).splitlines()


def test_models_show_versions_with_and_without_a_gateway(world, agent, capsys):
    """What runs, what stands by, on what; unknown is said, not shown as nothing."""
    assert lines(agent, capsys, "models")[1] == ["No model has been assigned to this device yet."]
    one = serve(agent, world)
    status, found = ask(agent, capsys, "models")
    assert (status, found["gateway"]) == (0, True)
    (model,) = found["models"]
    assert (model["version"], model["digest"], model["place"], model["role"]) == (
        "1.0.0", one.manifest, "active", "active",
    )  # fmt: skip
    assert model["runtime"] == "onnxruntime"
    assert not model["problem"]
    agent.stop()
    agent.gateway.close()
    status, found = ask(agent, capsys, "models")
    assert (status, found["gateway"], found["models"][0]["role"]) == (0, False, "")
    assert "not known" in lines(agent, capsys, "models")[1][-1]


def test_the_journal_is_read_with_agentd_down(world, agent, capsys):
    """Every slot's page as it lies on disk; a slot that is not there is named so."""
    one = serve(agent, world)
    agent.stop()
    status, found = ask(agent, capsys, "journal")
    assert status == 0
    assert found["slots"]["digits"]["active"]["digest"] == one.manifest
    assert found["slots"]["digits"]["deployment"]["state"] == "succeeded"
    status, said = ask(agent, capsys, "journal", "nobody")
    assert status == 2
    assert "digits" in said["error"]["hint"]
    assert any("active    1.0.0" in line for line in lines(agent, capsys, "journal")[1])


def test_verify_walks_from_the_pinned_root_to_every_byte(world, agent, capsys):
    """All well; then a changed blob, a missing one, and metadata that somebody else signed."""
    one = serve(agent, world)
    agent.stop()
    status, found = ask(agent, capsys, "verify")
    assert (status, found["ok"]) == (0, True)
    assert {c["what"] for c in found["checks"]} >= {
        "enrolment", "certificate", "floors", "catalog", "assignment", "release", "blob",
    }  # fmt: skip
    blobs = agent.folder / "state" / "store" / "blobs" / "sha256"
    model = next(p for p in blobs.iterdir() if p.name not in one.manifest)
    data = model.read_bytes()
    model.chmod(0o644)
    model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    status, found = ask(agent, capsys, "verify")
    bad = [c for c in found["checks"] if c["level"] == "error"]
    assert (status, [c["code"] for c in bad]) == (1, ["blob_corrupt"])
    model.unlink()
    status, found = ask(agent, capsys, "verify")
    bad = [c for c in found["checks"] if c["level"] == "error"]
    assert (status, [c["code"] for c in bad]) == (1, ["blob_missing"])
    root = agent.folder / "state" / "identity" / "root.json"
    root.write_bytes(World().first_root)
    status, found = ask(agent, capsys, "verify")
    assert status == 1
    assert any(c["what"] == "catalog" and c["level"] == "error" for c in found["checks"])


def test_a_lock_holds_the_swap_and_nothing_else(world, agent, capsys):
    """Locked: staged and no further, told upwards with the reason; unlocked: it swaps at once."""
    one = serve(agent, world)
    status, lock = ask(agent, capsys, "lock", "--reason", "an operation is under way")
    assert (status, lock["reason"]) == (0, "an operation is under way")
    said = f"Locked on the device by {lock['by']}: {lock['reason']}."
    assert lines(agent, capsys, "status")[1][3] == f"  {said}"
    shown = ask(agent, capsys, "status")[1]
    assert shown["locked"] == said
    assert shown["lock"] == {key: lock[key] for key in ("since", "by", "reason", "until")}
    two = world.publish("2.0.0")
    agent.assign(two)
    until(lambda: agent.transport.slot("digits").get("reason") == "locked")
    slot = agent.transport.slot("digits")
    assert (slot["state"], slot["active"]) == ("staged", one.manifest)
    assert "an operation is under way" in slot["detail"]
    agent.stop(end_gateway=False)
    agent.start()  # it outlives a restart
    until(lambda: agent.transport.slot("digits").get("state") == "staged")
    until(lambda: agent.transport.slot("digits").get("reason") == "locked")
    assert agent.gateway.routed("digits") == one.manifest
    assert ask(agent, capsys, "unlock") == (0, {"was_locked": True, "agentd": True})
    agent.reaches("succeeded")
    assert agent.gateway.routed("digits") == two.manifest
    assert not agent.transport.slot("digits")["reason"]
    assert ask(agent, capsys, "status")[1]["locked"] == ""


def test_a_lock_is_reported_before_anything_waits_for_it(world, agent, capsys, monkeypatch):
    """Who, why and until when go up as soon as it is set, and so does its end."""
    monkeypatch.setenv("SUDO_USER", "anna")
    until(lambda: agent.transport.reported)
    assert agent.transport.reported[-1]["locked"] is None
    _, lock = ask(agent, capsys, "lock", "--reason", "inspection", "--for", "8h")
    assert lock["agentd"]
    until(lambda: agent.transport.reported[-1]["locked"], "the lock", 10)
    told = agent.transport.reported[-1]["locked"]
    assert (told["by"], told["reason"], told["until"]) == ("anna", "inspection", lock["until"])
    assert lock["until"] > lock["since"] == told["since"]
    ask(agent, capsys, "unlock")
    until(lambda: agent.transport.reported[-1]["locked"] is None, "its end", 10)


def test_a_lock_holds_a_stop_too(world, agent, capsys):
    """An order to serve nothing waits as well."""
    one = serve(agent, world)
    ask(agent, capsys, "lock", "--for", "8h")
    agent.assign(msgspec.structs.replace(one, mode="stop", deployment="stop-1"))
    until(lambda: agent.transport.slot("digits").get("reason") == "locked")
    assert agent.gateway.routed("digits") == one.manifest
    ask(agent, capsys, "unlock")
    until(lambda: agent.gateway.routed("digits") == "")


def test_a_lock_ends_by_itself_and_damage_is_no_key(tmp_path):
    """It is over when its time is; a file that cannot be read keeps the device locked."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    lock = SwapLock(tmp_path, lambda: now[0])
    assert lock.read() is None
    lock.place("for a while", timedelta(hours=8))
    assert "08:00:00" in str(lock.read())
    now[0] += timedelta(hours=8)
    assert lock.read() is None
    (tmp_path / "locked.json").write_text("{")
    assert "damaged" in str(lock.read())
    assert lock.lift()
    assert lock.read() is None
    assert not lock.lift()


@pytest.mark.parametrize("text", ["", "0s", "8", "h", "-1h", "1.5h", "400d", "999999999d"])
def test_what_is_no_time_to_lock_for(text):
    """Refused with how to say it."""
    with pytest.raises(InvalidInputError) as caught:
        parse_duration(text)
    assert "30s" in str(caught.value)


def test_collect_takes_no_secret(world, agent, capsys, tmp_path):
    """One archive with state and versions; neither key nor PIN nor password is in it."""
    serve(agent, world)
    output = tmp_path / "out.tar.gz"
    status, found = ask(agent, capsys, "collect", "--output", str(output))
    assert status == 0
    with tarfile.open(output) as archive:
        members = {
            name.split("/", 1)[1]: archive.extractfile(name).read() for name in archive.getnames()
        }
    assert set(found["members"]) == set(members)
    assert {"config.json", "status.json", "state/journal.json", "versions.json"} <= set(members)
    key = (agent.folder / "state" / "identity" / "device.key").read_bytes()
    middle = key.splitlines()[1]
    assert not any(middle in data or b"PRIVATE KEY" in data for data in members.values())
    assert output.stat().st_mode & 0o777 == 0o600
    status, again = ask(agent, capsys, "collect", "--output", str(output))
    assert (status, again["error"]["code"]) == (2, "exists")
    status, nowhere = ask(agent, capsys, "collect", "--output", str(tmp_path / "no" / "x.tar.gz"))
    assert (status, nowhere["error"]["code"]) == (2, "missing_folder")
    text = redact(b"pkcs11:token=e;object=k?pin-value=1234 https://joe:secret@h/x")
    assert text == b"pkcs11:token=e;object=k?pin-value=*** https://joe:***@h/x"


def test_infer_asks_as_an_application_does(shared_gateway, tmp_path, capsys):
    """JSON, raw bytes and zeros; what is missing or does not fit is said with the way out."""
    toml = tmp_path / "agent.toml"
    toml.write_text(f'run_dir = "{shared_gateway.run}"\nstate_dir = "{tmp_path}"\n')

    def run(*arguments):
        capsys.readouterr()
        status = main(["infer", *arguments, "--config", str(toml), "--json"])
        return status, json.loads(capsys.readouterr().out)

    status, answer = run("m", "--input", "x=[[1,2,3,4]]")
    assert (status, answer["outputs"][0]["data"]) == (0, [20.0, 20.0])
    (tmp_path / "x.bin").write_bytes(bytes.fromhex("0000803f" * 4))
    status, answer = run("m", "--input", f"x=@{tmp_path}/x.bin", "--count", "3")
    assert (status, answer["outputs"][0]["data"]) == (0, [8.0, 8.0])
    assert answer["latency"]["count"] == 3
    assert run("m", "--zeros")[1]["outputs"][0]["data"] == [0.0, 0.0]
    assert "--input x=JSON" in run("m")[1]["error"]["hint"]
    for asked in (["y=1"], ["x=[[1,2"], ["x=null"], ["x=@no.bin"], ["x=[[1,2,3,4]]"] * 2):
        status, refused = run("m", *(f"--input={one}" for one in asked))
        assert (status, set(refused)) == (2, {"error"})
    assert run("m", "--zeros", "--count", "0")[0] == 2


@pytest.mark.parametrize("name", ["nobody", "a b", "Zähler", "../m", ""])
def test_infer_says_which_models_there_are(shared_gateway, tmp_path, capsys, name):
    """Whatever stands for a name: one paragraph that lists what the device serves."""
    toml = tmp_path / "agent.toml"
    toml.write_text(f'run_dir = "{shared_gateway.run}"\nstate_dir = "{tmp_path}"\n')
    assert main(["infer", name, "--zeros", "--config", str(toml)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "This device serves m 1" in err


def test_raw_bytes_solve_one_varying_dimension():
    """[-1, 4] of 8 floats is [2, 4]; what does not fit is refused before anything is sent."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    assert infer._shape_of(tensor, bytes(32)) == [2, 4]
    with pytest.raises(InvalidInputError):
        infer._shape_of(tensor, bytes(33))
    assert infer._shape_of({"name": "i", "datatype": "BYTES", "shape": [1]}, b"jpeg") == [1]
