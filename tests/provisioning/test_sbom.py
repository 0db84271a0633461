"""What a package says of its files and licences, and its CycloneDX export."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest

from edgefleet_provisioning.licenses import check
from edgefleet_shared.errors import InvalidInputError
from tests.cloud.running import RunningCloud
from tests.fleet_folder import FleetFolder
from tests.provisioning import bad_models as bad
from tests.provisioning.conftest import Cli
from tests.provisioning.test_publish import arguments

# Isolated: a validator of schemas is no part of the workspace.
VALIDATOR = (
    "uv", "run", "--isolated", "--no-project", "--with",
    "cyclonedx-python-lib[json-validation]", "python", "-c",
)  # fmt: skip
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(str(error) if error else 0)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The command line of a fleet where digits 1.0.0 is published, with all that can be said."""
    home = tmp_path_factory.mktemp("sbom")
    folder = FleetFolder(home / "fleet")
    cloud = RunningCloud(folder)
    cli = Cli()
    cli.arguments = ["--fleet", str(folder.path), "--server", cloud.url]
    np.savez(home / "golden.npz", x=np.ones((1, 1, 4), np.float32))
    (home / "labels.txt").write_text("even\nodd\n")
    cli.run(
        *arguments(bad.save(bad.good(), home / "m")), "--license", "apache-2.0 or mit",
        "--file-license", "labels.txt=CC0-1.0", "--source", "https://example.org/repo at 1a2b3c",
        "--golden", home / "golden.npz", "--labels", home / "labels.txt",
    )  # fmt: skip
    yield cli
    cloud.stop()


def test_a_version_shows_its_files_and_licences(published):
    """Path, digest, size, role, licence and source of each file; what made them."""
    found = published.json("model", "show", "digits", "1.0.0")
    files = {file["path"]: file for file in found["files"]}
    assert files["model.onnx"]["license"] == "Apache-2.0 OR MIT"
    assert files["model.onnx"]["source"] == "https://example.org/repo at 1a2b3c"
    assert files["labels.txt"]["license"] == "CC0-1.0"
    assert files["golden.safetensors"]["license"] == "NOASSERTION"
    assert files["golden.safetensors"]["role"] == "golden"
    assert "onnxruntime " in found["made_with"]["tools"]
    shown = published.run("model", "show", "digits", "1.0.0").stdout
    assert "file labels.txt" in shown
    assert "labels, 9 bytes, CC0-1.0" in shown


def test_the_bill_of_materials_is_whole(published, tmp_path):
    """Every file is a component of the model, with its hash and licence; the export repeats."""
    bill = published.json("model", "sbom", "digits", "1.0.0")
    model = bill["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == (
        "machine-learning-model", "digits", "1.0.0",
    )  # fmt: skip
    names = {component["name"]: component for component in bill["components"]}
    assert set(names) == {"model.onnx", "golden.safetensors", "labels.txt"}
    assert names["model.onnx"]["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]
    assert "licenses" not in names["golden.safetensors"]
    properties = {p["name"]: p["value"] for p in model["properties"]}
    assert properties["edgefleet:opset.ai.onnx"].isdigit()
    assert {"onnx", "onnxruntime"} <= {t["name"] for t in bill["metadata"]["tools"]["components"]}
    path = tmp_path / "bom.json"
    published.run("model", "sbom", "digits", "1.0.0", "-o", path)
    assert json.loads(path.read_text()) == bill


def test_the_bill_of_materials_is_valid_cyclonedx(published, tmp_path):
    """CycloneDX's own library finds nothing wrong with it, strictly read."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not on PATH, so CycloneDX's validator cannot be run apart from us")
    path = tmp_path / "bom.json"
    published.run("model", "sbom", "digits", "1.0.0", "-o", path)
    run = lambda *argv: subprocess.run(  # noqa: E731
        [*VALIDATOR, *argv], capture_output=True, text=True, check=False, timeout=100
    )
    if (tried := run("import cyclonedx")).returncode:
        pytest.skip(f"CycloneDX's library cannot be installed here: {tried.stderr[-200:]}")
    done = run(VALIDATE, str(path))
    assert done.returncode == 0, done.stderr
    broken = json.loads(path.read_text())
    broken["components"][0]["type"] = "weights"
    path.write_text(json.dumps(broken))
    assert run(VALIDATE, str(path)).returncode != 0


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("", ""), ("NOASSERTION", ""), ("mit", "MIT"), ("LicenseRef-Acme", "LicenseRef-Acme"),
        ("(mit or Apache-2.0) and CC-BY-4.0", "(MIT OR Apache-2.0) AND CC-BY-4.0"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
    ],
)  # fmt: skip
def test_licences_are_kept_in_their_one_spelling(said, kept):
    """What SPDX lists, combined as SPDX does."""
    assert check(said) == kept


@pytest.mark.parametrize("said", ["Apache", "MIT AND", "MIT; rm", "Apache-2.0 WITH MIT"])
def test_what_spdx_does_not_list_is_refused(said):
    """A misspelt licence is worse than none."""
    with pytest.raises(InvalidInputError) as caught:
        check(said)
    assert caught.value.code == "invalid_license"


def test_a_licence_for_a_file_that_is_not_there_is_refused(published, tmp_path):
    """A typing error in a path does not go unnoticed."""
    model = bad.save(bad.good(), tmp_path / "m")
    options = ("--file-license", "lables.txt=MIT")
    assert published.error(*arguments(model, "1.0.1"), *options)["code"] == "invalid_license"
    assert published.error(*arguments(model, "1.0.1"), "--file-license", "MIT")["code"] == "usage"


def test_publishing_again_with_other_tools_is_the_same_version(published, tmp_path, monkeypatch):
    """An upgrade of a tool does not make a version another, as long as its files are the same."""
    from edgefleet_provisioning import package_build

    model = bad.save(bad.good(), tmp_path / "m")
    published.run(*arguments(model, "1.1.0"))
    monkeypatch.setattr(package_build, "tools", lambda *_: "edgefleet 99")
    assert published.json(*arguments(model, "1.1.0"))["already_published"]
    error = published.error(*arguments(model, "1.1.0"), "--source", "elsewhere")
    assert error["code"] == "version_taken"
