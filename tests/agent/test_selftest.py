"""`edgefleet-agent selftest` on this machine: processor there, FPGA absent, nothing made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace

from edgefleet_agent import cli, config
from edgefleet_agent.selftest import command, machine, serving
from edgefleet_agent.selftest.report import Report, Row, table
from tests import selftest_data


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """One run of it, by the command line, with its report in a file."""
    folder = tmp_path_factory.mktemp("selftest")
    (folder / "agent.toml").write_text(f'state_dir = "{folder}"\nrun_dir = "{folder}"\n')
    output = folder / "report.json"
    status = cli.main(["selftest", "--config", str(folder / "agent.toml"), "--output", str(output)])
    return status, json.loads(output.read_text())


def rows(found, part: str) -> dict[str, dict]:
    """Return the rows of a part by name."""
    return {row["name"]: row for row in found[1]["rows"] if row["part"] == part}


def test_what_is_here_passes(found):
    """The processor serves, swaps without a failed answer, and gives its memory back."""
    assert found[0] == 0, found[1]
    name = "onnxruntime on cpu"
    assert rows(found, "golden")[name]["state"] == "passed"
    assert rows(found, "serve")[name]["figures"]["accelerated_pct"] == 100
    swap = rows(found, "swap")[name]["figures"]
    assert swap["failed"] == 0
    assert swap["answers"] > 0
    assert rows(found, "memory")[name]["figures"]["left_kb"] <= serving.LEFT_OVER_KB
    assert rows(found, "machine")["disk"]["figures"]["fsync_median_ms"] > 0
    assert found[1]["machine"]["cores"] >= 1


def test_what_is_not_here_says_why(found):
    """An FPGA that is absent is neither passed nor failed, and each thing looked for is named."""
    row = rows(found, "accelerator")["fpga"]
    assert row["state"] == "absent"
    assert "no fpga_manager" in row["why"]
    assert rows(found, "fpga")["cycle"]["state"] == "absent"


def test_an_accelerator_that_was_asked_for_must_be_there(tmp_path, capsys):
    """With --accelerator the exit status tells whether it is; an unknown kind is bad usage."""
    (tmp_path / "agent.toml").write_text(f'state_dir = "{tmp_path}"\nrun_dir = "{tmp_path}"\n')
    asked = ["selftest", "--config", str(tmp_path / "agent.toml"), "--json", "--accelerator"]
    assert cli.main([*asked, "fpga"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["rows"]
    assert "fpga was asked for and is absent" in err
    assert cli.main([*asked, "abacus"]) == 2
    assert "Known are cpu" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--package", "--output"])
def test_a_folder_that_is_not_there_is_said_at_once(tmp_path, capsys, option):
    """Nothing is tried first: what was measured could not be kept."""
    assert cli.main(["selftest", "--json", option, str(tmp_path / "no" / "file")]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], option in error["hint"]) == ("missing_folder", True)


def test_a_failure_is_a_failure():
    """One failed row is an exit status of 1, whatever else passed; the table names it."""
    facts = machine.facts("rpi5")
    good, bad = Row("swap", "a", "passed"), Row("swap", "b", "failed", "3 answers failed")
    report = Report("edgefleet-agent 1", "2026-01-01T00:00:00Z", facts, [good])
    assert report.passed()
    assert not report.passed("gpu")
    report = replace(report, rows=[good, bad])
    assert not report.passed()
    assert "FAILED  3 answers failed" in table(report)
    assert "1 passed, 1 failed, 0 absent" in table(report)


def test_a_clock_before_the_first_certificate_fails():
    """A board without a battery wakes in 1970 and is told so."""
    assert machine.clock(0.0).state == "failed"
    assert machine.clock(machine.EARLIEST + 1).state == "passed"


def test_a_gateway_that_does_not_start_is_told(tmp_path, monkeypatch):
    """Where nothing can be served the report says so instead of ending with a trace."""
    monkeypatch.setattr(command.compose, "command_of_gateway", lambda _: ["/bin/false"])
    report = command.run(config.Config(state_dir=str(tmp_path), run_dir=str(tmp_path)))
    assert next(row for row in report.rows if row.part == "gateway").state == "failed"
    assert not report.passed()


def test_the_models_that_ship_are_what_makes_them():
    """What lies in the package is what `tests.selftest_data` writes, by content."""
    for version in selftest_data.VERSIONS:
        path = Path(selftest_data.FOLDER, f"tiny-{version}.onnx")
        session = onnxruntime.InferenceSession(path)
        for inputs, outputs in selftest_data.reference(version):
            label, scores = session.run(["label", "scores"], inputs)
            np.testing.assert_array_equal(label, outputs["label"])
            np.testing.assert_allclose(scores, outputs["scores"], rtol=1e-4, atol=1e-5)
    made = selftest_data.files()
    assert {path.name for path in selftest_data.FOLDER.iterdir()} == made.keys()
    for name, data in made.items():
        if not name.endswith(".onnx"):  # whose encoder may write the same otherwise
            assert (selftest_data.FOLDER / name).read_bytes() == data
