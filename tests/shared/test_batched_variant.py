"""A variant that says `batching` has a first axis that varies, or is refused with the reason."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import (
    Batching,
    Manifest,
    RuntimeNeed,
    TensorSpec,
    Variant,
    decode_manifest,
    encode_manifest,
)
from tests.shared.test_container_variant import IMAGE
from tests.shared.test_package import MANIFEST, VARIANT

X, Y = TensorSpec("x", "FP32", [-1, 4]), TensorSpec("y", "FP32", [-1])
BATCHED = replace(VARIANT, inputs=[X], outputs=[Y], batching=Batching(8))


def manifest(variant: Variant) -> Manifest:
    """A manifest of one variant."""
    return replace(MANIFEST, variants=[variant])


def test_a_dynamic_first_axis_can_be_batched():
    """What the manifest says comes back; where it says nothing there is no batching."""
    batched = manifest(replace(BATCHED, batching=Batching(128, 1_000_000)))
    assert decode_manifest(encode_manifest(batched)) == batched
    assert decode_manifest(encode_manifest(MANIFEST)).variants[0].batching is None
    short = encode_manifest(manifest(BATCHED)).replace(b" ", b"").replace(b"\n", b"")
    assert b'"batching":{"max_batch_size":8}' in short


REFUSED = {
    "a fixed input": ({"inputs": [replace(X, shape=[1, 4])]}, "input 'x'"),
    "a second input that is fixed": ({"inputs": [X, TensorSpec("z", "FP32", [1])]}, "input 'z'"),
    "an input without axes": ({"inputs": [replace(X, shape=[])]}, "input 'x'"),
    "a fixed output": ({"outputs": [replace(Y, shape=[1])]}, "output 'y'"),
    "another axis that varies": ({"inputs": [replace(X, shape=[4, -1])]}, "input 'x'"),
    "one row": ({"batching": Batching(1)}, "limits"),
    "too many rows": ({"batching": Batching(129)}, "limits"),
    "a negative delay": ({"batching": Batching(8, -1)}, "limits"),
    "more than a second": ({"batching": Batching(8, 1_000_001)}, "limits"),
    "a container": (
        {"runtime": RuntimeNeed("container", image=IMAGE), "files": [], "golden": None,
         "session_options": {}},
        "container"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_batched_is_refused(changes, said):
    """By a code of its own, and a text that says which tensor or limit it is."""
    with pytest.raises(InvalidInputError) as refused:
        encode_manifest(manifest(replace(BATCHED, **changes)))
    assert refused.value.code == "manifest_batching"
    assert said in str(refused.value)
    assert refused.value.hint
