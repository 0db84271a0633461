"""The operator's commands: what they ask of the fleet manager, what they make of its answers."""

from __future__ import annotations

import contextlib
import json
import stat
import threading
import time
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from edgefleet_provisioning.cli import app
from tests.provisioning.conftest import Cli

DEVICE = {
    "id": "cam-1", "labels": {"site": "berlin"}, "hardware": "rpi5", "state": "enrolled",
    "key": "", "online": True, "way": "mqtt", "agent": {}, "counter": 1,
    "last_seen": "2026-01-31T12:00:00.000Z", "created": "2026-01-31T12:00:00.000Z",
    "slots": {"digits": {"active_version": "1.0.0", "state": "succeeded"}},
}  # fmt: skip
ROLLOUT = {
    "id": "r-1", "model": "digits", "version": "1.0.0", "state": "running", "reason": "",
    "created": "2026-01-31T12:00:00.000Z", "counts": {"probation": 1},
    "waves": [{"name": "canary", "state": "releasing", "devices": ["cam-1"],
               "counts": {"probation": 1}, "reason": ""}],
}  # fmt: skip


def page(*items):
    """One page that is the last."""
    return 200, {"items": list(items), "next_page_token": ""}


def asked(api, method, path):
    """The last body sent to a path."""
    return next(
        body for m, p, body in reversed(api.asked) if (m, p.split("?")[0]) == (method, path)
    )


def test_enroll_registers_and_writes_a_private_ticket(operator, api, tmp_path):
    """The device is registered with its labels, and the ticket's file is the owner's alone."""
    api.answers["POST", "/v1/devices"] = (201, DEVICE)
    made = {"ticket": "abc", "not_after": "2026-02-01T12:00:00.000Z"}
    api.answers["POST", "/v1/devices/cam-1/tickets"] = (201, made)
    path = tmp_path / "ticket.txt"
    told = operator.json(
        "device", "enroll", "cam-1", "--label", "site=berlin", "--hardware", "rpi5", "-o", path
    )
    body = {"id": "cam-1", "labels": {"site": "berlin"}, "hardware": "rpi5"}
    assert asked(api, "POST", "/v1/devices") == body
    assert path.read_text() == "abc\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "ticket" not in told
    assert operator.run("device", "ticket", "cam-1").stdout == "abc\n"


def test_enroll_again_makes_another_ticket(operator, api):
    """A device that is registered already only gets a new ticket."""
    api.answers["POST", "/v1/devices"] = (409, {"code": "device_exists", "detail": "It exists."})
    api.answers["POST", "/v1/devices/cam-1/tickets"] = (201, {"ticket": "abc", "not_after": "x"})
    result = operator.run("device", "enroll", "cam-1")
    assert result.stdout == "abc\n"
    assert "registered already" in result.stderr


@pytest.mark.parametrize("verb", ["enroll", "ticket"])
def test_nothing_is_made_for_a_ticket_file_that_cannot_be(operator, api, verb):
    """A folder that is missing is found before the device is registered."""
    assert operator.error("device", verb, "a", "-o", "/nowhere/t")["code"] == "not_writable"
    assert api.asked == []


def test_lists_are_columns_for_people_and_json_for_machines(operator, api):
    """Without a terminal a list is aligned text with a header; --json gives all of it."""
    api.answers["GET", "/v1/devices"] = page(DEVICE)
    header, line = operator.run("device", "list").stdout.splitlines()
    assert header.split()[:4] == ["ID", "STATE", "ONLINE", "WAY"]
    assert line.split()[:7] == [
        "cam-1", "enrolled", "yes", "mqtt", "rpi5", "site=berlin", "digits",
    ]  # fmt: skip
    assert operator.json("device", "list") == [DEVICE]


def test_a_list_is_read_to_its_last_page(operator, api):
    """next_page_token is followed until it is empty."""
    pages = iter([(200, {"items": [DEVICE], "next_page_token": "two"}), page(DEVICE)])
    api.answers = _Turns({("GET", "/v1/devices"): pages})
    assert len(operator.json("device", "list")) == 2
    assert "page_token=two" in api.asked[-1][1]


class _Turns(dict):
    """Answers of which each is given once."""

    def get(self, key, default=None):
        return next(self[key]) if key in self else default


def test_words_of_the_server_cannot_steer_a_terminal(operator, api):
    """Escape sequences in a label or a message are printed as question marks."""
    evil = {**DEVICE, "labels": {"site": "\x1b[2Jgone"}}
    api.answers["GET", "/v1/devices"] = page(evil)
    assert "\x1b" not in operator.run("device", "list").stdout
    api.answers["GET", "/v1/devices"] = (422, {"detail": "bad\x1b]0;x\x07[bold]", "code": "c"})
    shown = operator.run("device", "list", code=2).stderr
    assert "\x1b]" not in shown
    assert "[bold]" in shown


def test_labels_are_set_and_removed(operator, api):
    """key=value sets, key- removes, under the version of the device that was read."""
    api.answers["GET", "/v1/devices/cam-1"] = (200, DEVICE)
    api.answers["PATCH", "/v1/devices/cam-1"] = (200, DEVICE)
    operator.run("device", "label", "cam-1", "room=7", "site-")
    assert asked(api, "PATCH", "/v1/devices/cam-1") == {"labels": {"room": "7", "site": None}}


def test_a_rollout_is_asked_for_as_typed(operator, api):
    """Options become the body of the request; what is not given is left to the server."""
    api.answers["POST", "/v1/rollouts"] = (201, ROLLOUT)
    assert operator.json("rollout", "create", "digits", "1.0.0")["id"] == "r-1"
    assert asked(api, "POST", "/v1/rollouts") == {"model": "digits", "version": "1.0.0"}
    operator.run(
        "rollout", "create", "digits", "1.0.0", "--canary", "cam-1", "--probation-s", 3,
        "--max-failures", 0, "--group", "berlin", "--reason", "why",
    )  # fmt: skip
    assert asked(api, "POST", "/v1/rollouts") == {
        "model": "digits", "version": "1.0.0", "group": "berlin",
        "gate": {"max_failures": 0}, "policy": {"probation_s": 3},
        "waves": [{"name": "canary", "devices": ["cam-1"]}, {"name": "rest", "rest": True}],
    }  # fmt: skip
    assert api.reasons[-1] == "why"
    operator.run(
        "rollout", "create", "digits", "1.0.0", "--wave", "first=cam-1,cam-2", "--wave", "5",
        "--wave", "tenth=10%", "--wave", "rest",
    )  # fmt: skip
    assert asked(api, "POST", "/v1/rollouts")["waves"] == [
        {"name": "first", "devices": ["cam-1", "cam-2"]}, {"name": "wave-2", "count": 5},
        {"name": "tenth", "percent": 10.0}, {"name": "rest", "rest": True},
    ]  # fmt: skip


def test_a_dry_run_shows_the_waves(operator, api):
    """--dry-run asks for the plan and prints its waves."""
    api.answers["POST", "/v1/rollouts"] = (200, ROLLOUT)
    shown = operator.run("rollout", "create", "digits", "1.0.0", "--dry-run").stdout
    assert asked(api, "POST", "/v1/rollouts")["dry_run"] is True
    assert shown.splitlines()[1].split() == ["canary", "1", "cam-1"]


@pytest.mark.parametrize(
    ("state", "code"),
    [("completed", 0), ("stopped", 1), ("rolled_back", 1), ("paused", 1), ("superseded", 1)],
)
def test_watching_ends_with_the_rollout(operator, api, state, code):
    """The exit code says whether the rollout completed; each change is one line."""
    api.answers["GET", "/v1/rollouts/r-1"] = (200, ROLLOUT)

    def finish():
        while not any(path == "/v1/rollouts/r-1" for _, path, _ in api.asked):
            time.sleep(0.01)
        time.sleep(0.2)  # it is being answered
        api.answers["GET", "/v1/rollouts/r-1"] = (200, {**ROLLOUT, "state": state})

    later = threading.Thread(target=finish)
    later.start()
    result = operator.run("rollout", "watch", "r-1", code=code)
    later.join()
    first = "digits 1.0.0 running: canary releasing (1 probation)"
    assert result.stderr.splitlines()[0] == first
    assert f"is {state}" in result.stdout


def test_create_and_watch_gives_the_same_exit_code(operator, api):
    """`create --watch` follows what it made; with --json the end is one document."""
    api.answers["POST", "/v1/rollouts"] = (201, ROLLOUT)
    ended = {**ROLLOUT, "state": "stopped", "reason": "1 device failed; none may."}
    api.answers["GET", "/v1/rollouts/r-1"] = (200, ended)
    found = operator.json("rollout", "create", "digits", "1.0.0", "--watch", code=1)
    assert found["state"] == "stopped"
    said = operator.run("rollout", "watch", "r-1", code=1).stdout
    assert said == "Rollout of digits 1.0.0 is stopped: 1 device failed; none may.\n"


@pytest.mark.parametrize("verb", ["pause", "resume", "stop", "rollback"])
def test_a_rollout_obeys(operator, api, verb):
    """Each verb is one request with the reason."""
    api.answers["POST", f"/v1/rollouts/r-1/{verb}"] = (200, {**ROLLOUT, "state": "paused"})
    assert "paused" in operator.run("rollout", verb, "r-1", "--reason", "lunch").stdout
    assert asked(api, "POST", f"/v1/rollouts/r-1/{verb}") == {}
    assert api.reasons[-1] == "lunch"


def test_events_are_shown_oldest_first(operator, api):
    """The newest N are asked for, and printed in the order in which they happened."""
    events = [
        {"id": n, "ts": f"t{n}", "type": "x", "step": "prove", "subject": "devices/cam-1",
         "actor": "a", "message": f"message {n}", "data": {}}
        for n in (3, 2, 1)
    ]  # fmt: skip
    api.answers["GET", "/v1/events"] = page(*events)
    shown = operator.run("events", "--limit", 3).stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["t1", "t2", "t3"]
    lines = operator.run("events", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 3]


def test_telemetry_and_status_are_tables(operator, api):
    """Counts of each version, gaps named, and the fleet at a glance."""
    row = {"slot": "digits", "version": "1.0.0", "devices": ["cam-1", "cam-2"], "requests": 9,
           "p50_us": 120}  # fmt: skip
    gap = {"device": "cam-1", "stream": "telemetry", "missing": 4}
    api.answers["GET", "/v1/telemetry"] = (200, {"items": [row], "gaps": [gap]})
    result = operator.run("telemetry", "--slot", "digits", "--from", "2026-01-31T12:00:00Z")
    assert result.stdout.splitlines()[1].split()[:4] == ["digits", "1.0.0", "2", "9"]
    assert "cam-1 lost 4 items" in result.stderr
    api.answers["GET", "/v1/devices"] = page(DEVICE)
    api.answers["GET", "/v1/models"] = page({"name": "digits"})
    api.answers["GET", "/v1/rollouts"] = page(ROLLOUT, {**ROLLOUT, "state": "completed"})
    found = operator.json("status")
    assert (found["devices"], found["online"], found["running"]) == (1, 1, {"digits 1.0.0": 1})
    assert len(found["rollouts"]) == 1
    assert "1 of 1 online" in operator.run("status").stdout


def test_completion_offers_names(api, fleet):
    """Tab completion asks the server for names, and is silent when there is none."""
    api.answers["GET", "/v1/devices"] = page(DEVICE, {**DEVICE, "id": "other"})
    environment = {
        "COMP_WORDS": "edgefleet device show c", "COMP_CWORD": "3",
        "_EDGEFLEET_COMPLETE": "complete_bash", "EDGEFLEET_FLEET": str(fleet),
        "EDGEFLEET_SERVER": api.url,
    }  # fmt: skip
    assert _complete(environment) == "cam-1"
    assert _complete({**environment, "EDGEFLEET_SERVER": "http://127.0.0.1:9"}) == ""


def _complete(environment):
    result = CliRunner().invoke(app, [], prog_name="edgefleet", env=environment)
    return result.stdout.strip()


STATUSES = [
    (400, 2), (401, 1), (403, 1), (404, 1), (409, 1), (412, 1), (422, 2), (428, 1), (429, 3),
    (500, 1), (503, 3),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code"), STATUSES)
def test_a_refusal_is_one_paragraph(operator, api, status, code):
    """Title, detail, field errors, hint and code of a problem reach the operator."""
    problem = {
        "title": "Bad", "detail": "It is bad.", "code": "very_bad", "hint": "Make it good.",
        "errors": [{"field": "selector", "message": "is empty"}],
    }  # fmt: skip
    api.answers["GET", "/v1/groups"] = (status, problem)
    failed = operator.error("group", "list", code=code)
    assert failed == {
        "code": "very_bad", "message": "It is bad. selector: is empty.", "hint": "Make it good.",
    }  # fmt: skip


def test_a_field_that_the_detail_names_is_not_told_twice(operator, api):
    """The server's sentence and its list of fields say the same."""
    problem = {"detail": "It does not fit: a.b: too large.", "code": "x", "hint": "h",
               "errors": [{"field": "a.b", "message": "too large"}]}  # fmt: skip
    api.answers["GET", "/v1/groups"] = (422, problem)
    assert operator.error("group", "list")["message"] == "It does not fit: a.b: too large."


@pytest.mark.parametrize(
    ("route", "command"),
    [
        ("GET /v1/devices lists them.", "`edgefleet device list` lists them."),
        ("GET /v1/models/nope/versions lists.", "`edgefleet model show nope` lists."),
        ("POST /v1/devices/cam-1/tickets lets.", "`edgefleet device ticket cam-1` lets."),
        ("GET /v1/devices?filter=... shows.", "`edgefleet device list --selector ...` shows."),
    ],
)
def test_a_hint_names_commands_where_the_server_names_routes(operator, api, route, command):
    """Somebody at a command line is told commands."""
    api.answers["GET", "/v1/groups"] = (404, {"detail": "No.", "code": "x", "hint": route})
    assert operator.error("group", "list", code=1)["hint"] == command


@pytest.mark.parametrize("body", ["no problem document", [1], {"items": 3}, {"x": 1}])
def test_a_server_that_is_no_fleet_manager_is_found_out(operator, api, body):
    """Foreign answers, with whatever status, are errors and no traceback."""
    api.answers["GET", "/v1/groups"] = (200, body)
    assert operator.error("group", "list", code=1)["code"] == "not_a_fleet_manager"
    api.answers["GET", "/v1/groups"] = (418, body)
    assert operator.error("group", "list", code=1)["code"] == "http_418"


BAD = {
    "device add": (["device", "add", "Not A Name"], "invalid_name"),
    "device add, label": (["device", "add", "cam", "--label", "nolabel"], "invalid_label"),
    "device enroll": (["device", "enroll", "a/b"], "invalid_name"),
    "device enroll, folder": (["device", "ticket", "a", "-o", "/nowhere/t"], "not_writable"),
    "device label": (["device", "label", "cam-1", "=x"], "invalid_label"),
    "device history": (["device", "history", "cam-1", "--at", "noon"], "invalid_time"),
    "group create": (["group", "create", "A", "true"], "invalid_name"),
    "rollout create, version": (["rollout", "create", "digits", "one"], "invalid_version"),
    "rollout create, targets": (
        ["rollout", "create", "d", "1.0.0", "--group", "g", "--selector", "s"], "usage"),
    "rollout create, both": (
        ["rollout", "create", "d", "1.0.0", "--canary", "a", "--wave", "rest"], "usage"),
    "rollout create, share": (
        ["rollout", "create", "d", "1.0.0", "--wave", "a=110%"], "waves"),
    "rollout create, wave": (
        ["rollout", "create", "d", "1.0.0", "--wave", "a=B!"], "invalid_name"),
    "rollout create, wave's name": (
        ["rollout", "create", "d", "1.0.0", "--wave", "A!=1"], "invalid_name"),
    "telemetry": (["telemetry", "--from", "2026-01-31T12:00:00+01:00"], "invalid_time"),
    "trust delegate": (["trust", "delegate", "A B"], "invalid_name"),
    "a server without a scheme": (["status", "--server", "localhost:80"], "invalid_address"),
    "a server with a port that is none": (
        ["status", "--server", "http://localhost:70000"], "invalid_address"),
    "a fleet that is no folder": (["status", "--fleet", "/nowhere"], "missing_file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_without_asking_the_server(operator, api, case):
    """Exit code 2, one paragraph, and no request that changes anything."""
    arguments, code = BAD[case]
    own = {a for a in arguments if a.startswith("--")}
    pairs = zip(operator.arguments[::2], operator.arguments[1::2], strict=True)
    operator.arguments = [part for pair in pairs if pair[0] not in own for part in pair]
    assert operator.error(*arguments)["code"] == code
    assert {method for method, _, _ in api.asked} <= {"GET"}


USAGE = {
    "no command": ["device"],
    "an unknown command": ["devices", "list"],
    "an unknown option": ["device", "list", "--frobnicate"],
    "a missing argument": ["device", "show"],
    "a number that is none": ["rollout", "create", "d", "1.0.0", "--probation-s", "x"],
    "a ticket for too long": ["device", "enroll", "cam-1", "--valid-hours", "721"],
    "a number below its least": ["rollout", "create", "d", "1.0.0", "--max-failures", "-1"],
}


def test_the_version_is_told(cli):
    """`--version` is what people are asked for first."""
    assert cli.run("--version").stdout == f"edgefleet {version('edgefleet')}\n"


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_exit_code_two(cli, case):
    """Usage errors name what is wrong."""
    cli.run(*USAGE[case], code=2)


COMMANDS = [
    ["status"], ["events"], ["telemetry"], ["trust", "show"], ["trust", "delegate", "a"],
    ["model", "list"], ["model", "show", "a"], ["device", "add", "a"], ["device", "list"],
    ["device", "show", "a"], ["device", "label", "a", "b=c"], ["device", "ticket", "a"],
    ["device", "enroll", "a"], ["device", "history", "a"], ["device", "rm", "a"],
    ["group", "create", "a", "b"], ["group", "list"], ["group", "show", "a"], ["group", "rm", "a"],
    ["rollout", "create", "a", "1.0.0"], ["rollout", "list"], ["rollout", "show", "a"],
    ["rollout", "watch", "a"], ["rollout", "pause", "a"], ["rollout", "resume", "a"],
    ["rollout", "stop", "a"], ["rollout", "rollback", "a"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_when_nobody_answers(cli, fleet, command):
    """Exit code 3 and the address, for each command that needs the server."""
    cli.arguments = ["--fleet", str(fleet), "--server", "http://127.0.0.1:9"]
    failed = cli.error(*command, code=3)
    assert failed["code"] == "server_unreachable"
    assert "http://127.0.0.1:9" in failed["message"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_when_there_is_no_server_to_ask(cli, tmp_path, command):
    """Outside a fleet folder and without an address each says how to give one."""
    with contextlib.chdir(tmp_path):
        assert cli.error(*command)["code"] in {"no_server", "no_fleet"}


def test_the_folder_one_stands_in_is_enough(cli, api, fleet):
    """In a fleet folder no option is needed: client.toml names the server and the token."""
    config = fleet / "offline" / "client.toml"
    config.write_text(f'server = "{api.url}"\ntoken = "{api.token}"\n')
    api.answers["GET", "/v1/groups"] = page({"name": "g", "selector": "s"})
    with contextlib.chdir(fleet):
        assert Cli().json("group", "list") == [{"name": "g", "selector": "s"}]
    config.write_text("server = ")
    assert Cli().error("group", "list", "--fleet", fleet)["code"] == "bad_config"
