"""The demo's models: real training, and a fault that hides from golden vectors."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from edgefleet_provisioning.demo.digits import VERSIONS, build


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Train once."""
    return build(tmp_path_factory.mktemp("digits"))


def answers(path, pixels):
    """Labels and probabilities by plain onnxruntime."""
    session = onnxruntime.InferenceSession(path.read_bytes())
    return session.run(["label", "probabilities"], {"pixels": pixels})


def test_the_second_version_is_right_more_often_on_held_out_digits(digits):
    """2.0.0 beats 1.0.0 on digits that neither has seen."""
    held = np.load(digits.held_out)
    first, second = (
        (answers(digits.models[v], held["pixels"])[0] == held["labels"]).mean()
        for v in VERSIONS[:2]
    )
    assert 0.9 < first < second


def test_the_third_version_hides_its_fault_from_golden_digits(digits):
    """3.0.0 answers golden digits like 2.0.0, and some held-out digits with NaN."""
    golden = np.load(digits.golden)["pixels"][:, 0, :]
    held = np.load(digits.held_out)["pixels"]
    good, bad = (answers(digits.models[v], golden)[1] for v in VERSIONS[1:])
    assert np.array_equal(good, bad)
    broken = np.isnan(answers(digits.models["3.0.0"], held)[1]).any(axis=1).mean()
    assert 0.05 < broken < 0.5
