"""docs/inference.md makes and publishes the models that its examples ask."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import onnxruntime
from typer.testing import CliRunner

from edgefleet_provisioning.cli import app
from edgefleet_shared.alike import seen
from edgefleet_shared.package import TensorSpec, decode_manifest
from tests.agent.test_inference_guide import JSON, PYTHON, SHELL, TOML


def test_the_models_of_the_page_can_be_made(tmp_path, monkeypatch):
    """The program makes both, the commands publish them, and they take what the examples send."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", PYTHON[3]], timeout=30, check=True)
    (tmp_path / "sorter.toml").write_text(TOML[0])
    published = {}
    for words in map(shlex.split, SHELL[3].splitlines()):
        if words[1:3] != ["model", "publish"]:
            continue
        done = CliRunner().invoke(app, [*words[1:], "--output", words[5], "--json"])
        assert done.exit_code == 0, done.output
        digest = json.loads(done.stdout.splitlines()[-1])["manifest"].removeprefix("sha256:")
        manifest = decode_manifest((tmp_path / words[5] / "blobs/sha256" / digest).read_bytes())
        published[manifest.name] = seen(manifest.variants[0])
    assert published["scores"].inputs == [TensorSpec("x", "FP32", [-1, 4])]
    assert published["sorter"].inputs == [TensorSpec("image", "BYTES", [1])]
    assert [one.name for one in published["sorter"].outputs] == ["scores", "classes", "labels"]
    session = onnxruntime.InferenceSession("scores.onnx")
    (y,) = session.run(None, {"x": np.array([[1, 2, 3, 4]], np.float32)})
    assert y.ravel().tolist() == json.loads(JSON[0])["outputs"][0]["data"]
