"""`edgefleet model publish --processing`: steps in TOML or JSON become part of what is signed."""

from __future__ import annotations

import json

import pytest

from edgefleet_shared.package import decode_manifest
from edgefleet_shared.processing import Processing, Softmax, TopK
from tests.models import linear
from tests.provisioning import bad_models as bad

TOML = """
[[post]]
step = "softmax"

[[post]]
step = "top_k"
k = 1
labels = "labels"
"""


@pytest.fixture
def publish(cli, tmp_path):
    """Publish a good model with steps and so many labels; return what the command told."""
    model = bad.save(linear(), tmp_path / "m")

    def run(text: str, labels: int = 2, name: str = "steps.toml", *, ok: bool = True):
        steps = tmp_path / name
        steps.write_text(text)
        more = []
        if labels:
            (tmp_path / "labels.txt").write_text("".join(f"class {i}\n" for i in range(labels)))
            more = ["--labels", tmp_path / "labels.txt"]
        ask = cli.json if ok else cli.error
        return ask(
            "model", "publish", model, "--name", "digits", "--version", "1.0.0",
            "--processing", steps, *more, "--output", tmp_path / "oci",
        )  # fmt: skip

    return run


@pytest.mark.parametrize("form", ["toml", "json"])
def test_steps_become_part_of_the_manifest(publish, tmp_path, form):
    """What the file says is what the manifest holds, in both notations."""
    document = {"post": [{"step": "softmax"}, {"step": "top_k", "k": 1, "labels": "labels"}]}
    text = TOML if form == "toml" else json.dumps(document)
    told = publish(text, name=f"steps.{form}")
    data = (tmp_path / "oci/blobs/sha256" / told["manifest"][7:]).read_bytes()
    want = Processing(post=[Softmax(), TopK(1, labels="labels")])
    assert decode_manifest(data).variants[0].processing == want


BAD = {
    "a step that nobody knows": ('[[post]]\nstep = "python"', 2, "bad_processing"),
    "a field that nobody knows": ('[[post]]\nstep = "softmax"\nwhere = 1', 2, "bad_processing"),
    "no TOML": ("post = [", 2, "bad_processing"),
    "no labels": (TOML, 0, "bad_processing"),
    "fewer labels than classes": (TOML, 1, "manifest_processing"),
    "steps that do not chain": ('[[post]]\nstep = "top_k"\nk = 9', 2, "manifest_processing"),
    "an image for a model of numbers": ('[[pre]]\nstep = "decode_image"', 2, "manifest_processing"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_a_device_would_refuse_is_refused_here(publish, what):
    """A mistake gets its code and a hint before anything is written."""
    text, labels, code = BAD[what]
    failed = publish(text, labels, ok=False)
    assert failed["code"] == code
    assert failed["hint"]


def test_a_file_that_is_missing_is_named(cli, tmp_path):
    """Without the file, nothing is built."""
    model = bad.save(linear(), tmp_path / "m")
    failed = cli.error(
        "model", "publish", model, "--name", "digits", "--version", "1.0.0",
        "--processing", tmp_path / "gone.toml", "--output", tmp_path / "oci",
    )  # fmt: skip
    assert failed["code"] == "bad_processing"
    assert "gone.toml" in failed["message"]
