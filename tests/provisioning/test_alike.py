"""The rule by which variants of one version answer alike."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgefleet_shared.alike import check_alike
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import RuntimeNeed, TensorSpec
from edgefleet_shared.processing import DecodeImage, Layout, Normalise, Processing, Resize
from tests.fleet_folder import small_package

FIRST = replace(small_package()[0].variants[0], id="first")
X, Y = FIRST.inputs[0], FIRST.outputs[0]
DIFFERENT = {
    "another name": ({"inputs": [replace(X, name="serving_default_x")]}, "'serving_default_x'"),
    "another datatype": ({"inputs": [replace(X, datatype="UINT8")]}, "UINT8 [-1, 4]"),
    "a fixed batch": ({"inputs": [replace(X, shape=[1, 4])]}, "FP32 [1, 4]"),
    "another rank": ({"outputs": [replace(Y, shape=[2])]}, "FP32 [2]"),
    "one output more": ({"outputs": [Y, replace(Y, name="z")]}, "'z'"),
    "one input more": ({"inputs": [X, replace(X, name="mask")]}, "'mask'"),
}


@pytest.mark.parametrize(("change", "said"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_another_signature_is_refused_by_name(change, said):
    """The message names both variants, the tensor, and what it is in each."""
    with pytest.raises(InvalidInputError) as caught:
        check_alike([FIRST, replace(FIRST, id="other", **change)])
    assert caught.value.code == "variant_tensors"
    assert "'first'" in caught.value.message
    assert "'other'" in caught.value.message
    assert said in caught.value.message


def test_another_order_is_another_signature():
    """A client that takes the first output must get the same one everywhere."""
    z = TensorSpec("z", "FP32", [-1])
    first = replace(FIRST, outputs=[Y, z])
    check_alike([first, replace(first, id="same")])
    with pytest.raises(InvalidInputError, match="y, z in 'first' and z, y in 'other'"):
        check_alike([first, replace(first, id="other", outputs=[z, Y])])


def test_declared_steps_count_not_the_bare_model():
    """Two layouts of one photo are alike where each declares the way from the JPEG."""
    to_chw = [DecodeImage(), Resize(width=8, height=8), Normalise(), Layout()]
    to_hwc = [*to_chw[:3], Layout(order="HWC")]
    chw = replace(
        FIRST, inputs=[TensorSpec("x", "FP32", [1, 3, 8, 8])], processing=Processing(pre=to_chw)
    )
    hwc = replace(
        FIRST, id="hwc", inputs=[TensorSpec("x", "FP32", [1, 8, 8, 3])],
        processing=Processing(pre=to_hwc),
    )  # fmt: skip
    check_alike([chw, hwc])
    with pytest.raises(InvalidInputError, match="'image'"):
        check_alike([chw, replace(hwc, processing=None)])


def test_a_core_may_fix_what_the_first_leaves_open():
    """A register window holds one call; only a core may be narrower, and never otherwise."""
    narrow = {"inputs": [replace(X, shape=[1, 4])], "outputs": [replace(Y, shape=[1, 2])]}
    core = replace(FIRST, id="core", runtime=RuntimeNeed("registers"), **narrow)
    check_alike([FIRST, core])
    with pytest.raises(InvalidInputError, match=r"FP32 \[1, 5\]"):
        check_alike([FIRST, replace(core, inputs=[replace(X, shape=[1, 5])])])
