"""docs/inference.md, run as it stands: every shell, Python and TOML block of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgefleet_shared.package import TensorSpec
from edgefleet_shared.processing import Processing
from edgefleet_shared.processing_rules import outer
from tests.house.documents import FENCE, text_of
from tests.models import colours, linear, package

BLOCKS = FENCE.findall(text_of("docs/inference.md"))


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for kind, body in BLOCKS if kind == language]


SHELL, PYTHON, TOML, JSON = (blocks(kind) for kind in ("sh", "python", "toml", "json"))


def steps(text: str) -> Processing:
    """A block as `--processing` reads it."""
    return msgspec.convert(tomllib.loads(text), Processing)


@pytest.fixture(scope="module")
def guide(shared_gateway, tmp_path_factory):
    """A way to run a block: against a gateway that serves the models which the page names."""
    folder = tmp_path_factory.mktemp("guide")
    Image.new("RGB", (64, 48), (10, 250, 60)).save(folder / "photo.jpg", quality=95)
    labels = b"red\ngreen\nblue\n"
    sorter = package(folder, colours(), name="sorter", labels=labels, processing=steps(TOML[0]))
    for one in (package(folder, linear(2.0), name="scores"), sorter):
        shared_gateway.control.serve(one)

    def run(text: str, *program: str) -> str:
        text = text.replace("/run/edgefleet/infer.sock", str(shared_gateway.uds))
        text = text.replace("127.0.0.1:8500", shared_gateway.address)
        done = subprocess.run(
            [*program, text], cwd=folder, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def documents_in(text: str) -> Iterator[dict]:
    """JSON documents that stand one after the other."""
    while text := text.strip():
        found, end = json.JSONDecoder().raw_decode(text)
        text = text[end:]
        yield found


@pytest.mark.curl
def test_the_first_request_answers_what_the_page_shows(guide):
    """The answer under the example is the answer that comes."""
    (found,) = documents_in(guide(SHELL[0], "bash", "-ec"))
    assert found == json.loads(JSON[0])


@pytest.mark.curl
def test_questions_about_models_are_answered(guide):
    """Metadata, readiness and index, one after the other."""
    metadata, ready, index = documents_in(guide(SHELL[1], "bash", "-ec"))
    assert metadata["inputs"][0]["name"] == "x"
    assert ready == {"name": "scores", "ready": True}
    assert {one["name"] for one in index} >= {"scores", "sorter"}


@pytest.mark.curl
def test_a_jpeg_gets_the_labels_that_the_page_shows(guide):
    """A photo that is mostly green is green, then blue, as under the example."""
    (found,) = documents_in(guide(SHELL[2], "bash", "-ec"))
    shown = json.loads(JSON[1])
    for got, want in zip(found.pop("outputs"), shown.pop("outputs"), strict=True):
        data, wanted = got.pop("data"), want.pop("data")
        assert got == want
        assert data == wanted or np.allclose(data, wanted, atol=0.02)
    assert found == shown


@pytest.mark.curl
def test_metrics_and_statistics_are_where_the_page_says(guide):
    """All three addresses answer, Triton's names where they are asked for."""
    text = guide(SHELL[4], "bash", "-ec")
    plain, _, rest = text.partition("# HELP nv_inference_request_success")
    assert "edgefleet_inference_duration_seconds_bucket" in plain
    assert '"model_stats":[{"name":"scores"' in rest


@pytest.mark.parametrize(("index", "wanted"), [
    (0, ["[[8. 8.]]", "green"]), (1, ["[0. 0.]", "[8. 8.]", "[16. 16.]"]), (2, ["20."]),
])  # fmt: skip
def test_the_python_programs_run(guide, index, wanted):
    """Our library twice and the standard library's client, each as a program of its own."""
    printed = guide(PYTHON[index], sys.executable, "-c")
    assert [text for text in wanted if text not in printed] == []


def test_a_detector_is_described_as_the_page_says():
    """The second example chains for a model as YOLOv8 exports it."""
    given = [TensorSpec("images", "FP32", [1, 3, 640, 640])]
    found = outer(steps(TOML[1]), given, [TensorSpec("output0", "FP32", [1, 84, 8400])])
    assert [one.name for one in found.inputs] == ["image"]
    assert [one.name for one in found.outputs] == ["boxes", "scores", "classes", "labels"]


def test_every_block_is_looked_at():
    """A block that is added to the page gets its test."""
    counts = [len(part) for part in (SHELL, PYTHON, TOML, JSON, blocks("csharp"))]
    assert counts == [5, 4, 2, 2, 1]
    assert sum(counts) == len(BLOCKS)
