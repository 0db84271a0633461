"""The manifest: everything good survives, everything else is refused before it is signed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.identifiers import NAME, sha256_digest
from edgefleet_shared.package import (
    MANIFEST_MAX_BYTES,
    SESSION_OPTIONS,
    FileEntry,
    Golden,
    Limits,
    Manifest,
    ReferenceHistogram,
    RuntimeNeed,
    TensorSpec,
    Variant,
    check_path,
    decode_manifest,
    encode_manifest,
    fitting_variants,
    publisher_role,
    target_path,
)

MODEL = FileEntry("model.onnx", sha256_digest(b"m"), 10, "onnx")
VECTORS = FileEntry("golden.safetensors", sha256_digest(b"g"), 20, "golden")
VARIANT = Variant(
    "cpu", ["*"], "cpu", RuntimeNeed("onnxruntime", "1.27"), [MODEL, VECTORS],
    [TensorSpec("x", "FP32", [-1, 64])], [TensorSpec("y", "INT64", [-1])],
    golden=Golden(VECTORS.path, 4), session_options={"intra_op_num_threads": 1},
)  # fmt: skip
REFERENCE = ReferenceHistogram("x", 0, [0.0, 0.5, 1.0], [1, 2, 3, 4, 5])
MANIFEST = Manifest(
    1, "digits", "1.0.0", 3, 2, "2026-11-21T12:00:00Z", [VARIANT], labels=["0", "1"],
    reference=[REFERENCE],
)  # fmt: skip

names = st.from_regex(NAME, fullmatch=True)
small = st.integers(0, 2**53 - 1)
specs = st.builds(TensorSpec, st.text(min_size=1, max_size=9),
                  st.sampled_from(["FP32", "INT64", "BYTES"]),
                  st.lists(st.integers(-1, 999), max_size=3))  # fmt: skip
tensors = st.lists(specs, min_size=1, max_size=3, unique_by=lambda s: s.name)
paths = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}(/[a-z0-9]{1,9}){0,2}", fullmatch=True)
entries = st.builds(
    lambda path, blob, role: FileEntry(path, sha256_digest(blob), len(blob), role),
    paths, st.binary(max_size=9), st.sampled_from(["onnx", "labels", "json"]),
)  # fmt: skip


def fitting(variant: Variant) -> Variant:
    """Return it with options that its runtime has."""
    light = variant.runtime.name == "litert" and variant.session_options
    return replace(variant, session_options={"num_threads": 2}) if light else variant


variants = st.builds(
    Variant, names, st.lists(st.text(max_size=9), min_size=1, max_size=2),
    st.sampled_from(["cpu", "gpu", "npu"]),  # fpga: test_fpga_variant.py
    st.builds(RuntimeNeed, st.sampled_from(["onnxruntime", "litert"])),
    st.lists(entries, min_size=1, max_size=4, unique_by=lambda e: e.path.lower()),
    tensors, tensors,
    limits=st.builds(Limits, *[st.integers(1, 10**6)] * 3),
    session_options=st.dictionaries(
        st.sampled_from(sorted(SESSION_OPTIONS)), st.integers(0, 9) | st.text(max_size=9)
        | st.booleans(), max_size=3),
).map(fitting)  # fmt: skip
manifests = st.builds(
    lambda floor, more, **rest: Manifest(
        schema=1, release_counter=max(floor, 1) + more, security_floor=floor, **rest),
    st.integers(0, 2**40), st.integers(0, 2**40), name=names,
    version=st.sampled_from(["0.0.0", "1.2.3-rc.1"]), created=st.just("2026-11-21T12:00:00.000Z"),
    variants=st.lists(variants, min_size=1, max_size=3, unique_by=lambda v: v.id),
    description=st.text(max_size=50), provenance=st.dictionaries(st.text(max_size=9), st.text()),
)  # fmt: skip


@settings(deadline=None)
@given(manifests)
def test_a_manifest_survives_being_written_and_read(manifest):
    """Decoding what was encoded gives an equal manifest, and encoding it again the same bytes."""
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert encode_manifest(decode_manifest(data)) == data


def test_the_example_is_good():
    """The manifest that the refusals below start from is itself accepted."""
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST


def with_variant(**changes: Any) -> Manifest:
    """Return the manifest with its variant changed."""
    return replace(MANIFEST, variants=[replace(VARIANT, **changes)])


def with_file(**changes: Any) -> Manifest:
    """Return the manifest with its model file changed."""
    return with_variant(files=[replace(MODEL, **changes), VECTORS])


def with_reference(edges: list[float], counts: list[int]) -> Manifest:
    """Return the manifest with another reference histogram."""
    return replace(MANIFEST, reference=[ReferenceHistogram("x", 0, edges, counts)])


X = TensorSpec("x", "FP32", [1])
nan, inf = float("nan"), float("inf")
REFUSED: dict[str, tuple[Manifest, str]] = {
    "a name with a slash": (replace(MANIFEST, name="a/b"), "invalid_name"),
    "a version that is none": (replace(MANIFEST, version="1"), "invalid_version"),
    "release counter 0": (
        replace(MANIFEST, release_counter=0, security_floor=0), "manifest_counters"),
    "a floor above the counter": (replace(MANIFEST, security_floor=4), "manifest_counters"),
    "a negative floor": (replace(MANIFEST, security_floor=-1), "manifest_counters"),
    "a counter beyond 2^53": (replace(MANIFEST, release_counter=2**53), "malformed"),
    "a time that is none": (replace(MANIFEST, created="today"), "malformed"),
    "a local time": (replace(MANIFEST, created="2026-11-21T12:00:00"), "malformed"),
    "no variants": (replace(MANIFEST, variants=[]), "manifest_variants"),
    "two variants of one id": (
        replace(MANIFEST, variants=[VARIANT, VARIANT]), "manifest_variants"),
    "a variant's id that climbs": (with_variant(id=".."), "invalid_name"),
    "no hardware": (with_variant(hardware=[]), "manifest_variants"),
    "no inputs": (with_variant(inputs=[]), "manifest_variants"),
    "no outputs": (with_variant(outputs=[]), "manifest_variants"),
    "no files": (with_variant(files=[]), "manifest_files"),
    "257 files": (
        with_variant(files=[replace(MODEL, path=f"f{i}") for i in range(257)]), "manifest_files"),
    "a path that climbs": (with_file(path="../model.onnx"), "manifest_path"),
    "a digest that is none": (with_file(digest="sha256:abc"), "invalid_digest"),
    "a negative size": (with_file(size=-1), "manifest_files"),
    "one digest, two sizes": (
        with_variant(files=[MODEL, VECTORS, replace(MODEL, path="again", size=11)]),
        "manifest_files"),
    "paths that differ in case": (
        with_variant(files=[MODEL, VECTORS, replace(MODEL, path="MODEL.onnx")]), "manifest_path"),
    "an option that loads code": (
        with_variant(session_options={"session.custom_ops": "/x.so"}),
        "manifest_session_option"),
    "an option of the other runtime": (
        with_variant(runtime=RuntimeNeed("litert"), session_options={"execution_mode": "parallel"}),
        "manifest_session_option"),
    "golden vectors that are not there": (
        with_variant(golden=Golden("else", 1)), "manifest_golden"),
    "golden vectors that are the model": (
        with_variant(golden=Golden(MODEL.path, 1)), "manifest_golden"),
    "no golden case": (with_variant(golden=Golden(VECTORS.path, 0)), "manifest_golden"),
    "a negative tolerance": (
        with_variant(golden=Golden(VECTORS.path, 1, rtol=-1)), "manifest_golden"),
    "a tolerance that is NaN": (
        with_variant(golden=Golden(VECTORS.path, 1, atol=nan)), "manifest_golden"),
    "a tolerance that lets all pass": (
        with_variant(golden=Golden(VECTORS.path, 1, rtol=inf)), "manifest_golden"),
    "no memory at all": (with_variant(limits=Limits(memory_mb=0)), "manifest_limits"),
    "an input twice": (with_variant(inputs=[X, X]), "manifest_tensors"),
    "an output without a name": (with_variant(outputs=[replace(X, name="")]), "manifest_tensors"),
    "a shape of -2": (with_variant(inputs=[replace(X, shape=[-2])]), "manifest_tensors"),
    "edges that fall": (with_reference([1.0, 0.0], [0] * 4), "manifest_reference"),
    "edges that stand": (with_reference([1.0, 1.0], [0] * 4), "manifest_reference"),
    "an edge that is NaN": (with_reference([nan], [0] * 3), "manifest_reference"),
    "an edge that is infinite": (with_reference([inf], [0] * 3), "manifest_reference"),
    "too few counts": (with_reference([1.0], [0] * 2), "manifest_reference"),
    "a negative count": (with_reference([1.0], [0, 0, -1]), "manifest_reference"),
    "no edges": (with_reference([], [0, 0]), "manifest_reference"),
    "more than 64 kB": (
        replace(MANIFEST, description="x" * MANIFEST_MAX_BYTES), "manifest_too_large"),
    "a lone surrogate": (replace(MANIFEST, description="\ud800"), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("manifest", "code"), REFUSED.values(), ids=REFUSED)
def test_what_breaks_a_rule_is_not_signed(manifest, code):
    """Every rule that types cannot say is broken once, and refused by its code."""
    with pytest.raises(InvalidInputError) as refused:
        encode_manifest(manifest)
    assert refused.value.code == code


@pytest.mark.parametrize("name", [n for n, (_, code) in REFUSED.items() if code != "malformed"])
def test_what_breaks_a_rule_is_not_read(name):
    """A device refuses the same manifests when somebody signed them after all."""
    manifest, _ = REFUSED[name]
    with pytest.raises(InvalidInputError):
        decode_manifest(msgspec.json.encode(manifest))


@pytest.mark.parametrize("role", ["python", "pickle", "so", "onnx "])
def test_code_has_no_role(role):
    """A file that may execute cannot be expressed."""
    text = encode_manifest(MANIFEST).replace(b'"role": "onnx"', b'"role": "%b"' % role.encode())
    with pytest.raises(InvalidInputError) as refused:
        decode_manifest(text)
    assert refused.value.code == "malformed"


@pytest.mark.parametrize("place", [[], ["variants", 0], ["variants", 0, "files", 0],
                                   ["variants", 0, "golden"]], ids=str)  # fmt: skip
def test_unknown_fields_are_refused_everywhere(place):
    """In signed instructions a field that we do not know could be the one that matters."""
    document = json.loads(encode_manifest(MANIFEST))
    part = document
    for key in place:
        part = part[key]
    part["run_as_root"] = True
    with pytest.raises(InvalidInputError, match="unknown field"):
        decode_manifest(json.dumps(document).encode())


@pytest.mark.parametrize("path", ["a", "model.onnx", "weights/part-1.bin", "a" * 200, "A/b_c/d"])
def test_good_paths(path):
    """Plain relative paths are taken."""
    check_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", "..", "a/../b", "./a", ".hidden", "a/.hidden", "a\\b", "a b", "a\n",
     "a" * 201, "c:a", "\u00e9", "a\x00", "~", "a\u2044b"],
)  # fmt: skip
def test_bad_paths(path):
    """Whatever some file system could read as another place is refused."""
    with pytest.raises(InvalidInputError) as refused:
        check_path(path)
    assert refused.value.code == "manifest_path"


def test_names_in_the_catalog():
    """Where TUF keeps a manifest, and who may sign it."""
    assert target_path("digits", "1.0.0") == "models/digits/1.0.0/manifest.json"
    assert publisher_role("digits") == "publisher/digits"


def test_the_only_file_of_a_role():
    """A role with one file gives it; none or two are refused."""
    assert VARIANT.file("onnx") == MODEL
    for files in ([VECTORS], [MODEL, replace(MODEL, path="b")]):
        with pytest.raises(InvalidInputError) as refused:
            replace(VARIANT, files=files).file("onnx")
        assert refused.value.code == "manifest_files"


def offer(*variants_: tuple[str, str, str], golden: bool = False) -> Manifest:
    """Return a manifest of variants given as (id, hardware, accelerator)."""
    vectors = VARIANT.golden if golden else None
    return replace(
        MANIFEST,
        variants=[replace(VARIANT, id=i, hardware=h.split(), accelerator=a, golden=vectors)
                  for i, h, a in variants_],
    )  # fmt: skip


CHOICES: dict[str, tuple[Manifest, str, set[str], str]] = {
    "the only one": (offer(("a", "*", "cpu")), "rpi5", {"cpu"}, "a"),
    "exact before any": (offer(("a", "*", "cpu"), ("b", "rpi5", "cpu")), "rpi5", {"cpu"}, "b"),
    "any where none is exact": (
        offer(("a", "*", "cpu"), ("b", "rpi5", "cpu")), "nano", {"cpu"}, "a"),
    "one of several strings": (offer(("a", "rpi4 rpi5", "cpu")), "rpi5", {"cpu"}, "a"),
    "what is not usable does not count": (
        offer(("a", "*", "cpu"), ("b", "nano", "gpu")), "nano", {"cpu"}, "a"),
    "exact on an accelerator": (
        offer(("a", "*", "cpu"), ("b", "nano", "gpu")), "nano", {"cpu", "gpu"}, "b"),
    "no part of a string": (offer(("a", "rpi", "cpu")), "rpi5", {"cpu"}, "no_compatible_variant"),
    "no pattern": (offer(("a", "rpi*", "cpu")), "rpi5", {"cpu"}, "no_compatible_variant"),
    "no accelerator": (offer(("a", "*", "gpu")), "rpi5", {"cpu"}, "no_compatible_variant"),
    "two that fit": (offer(("a", "*", "cpu"), ("b", "*", "cpu")), "x", {"cpu"},
                     "ambiguous_variant"),
    "two that fit exactly": (
        offer(("a", "x", "cpu"), ("b", "x", "gpu")), "x", {"cpu", "gpu"}, "ambiguous_variant"),
    "two that golden vectors tell apart": (
        offer(("a", "*", "cpu"), ("b", "*", "gpu"), golden=True), "x", {"cpu", "gpu"}, "a b"),
    "exact before any, measured or not": (
        offer(("a", "*", "cpu"), ("b", "x", "gpu"), golden=True), "x", {"cpu", "gpu"}, "b"),
}  # fmt: skip


@pytest.mark.parametrize(("manifest", "hardware", "usable", "expected"), CHOICES.values(),
                         ids=CHOICES)  # fmt: skip
def test_choosing_a_variant(manifest, hardware, usable, expected):
    """The publisher's manifest alone decides among what a device may choose."""
    able = [v for v in manifest.variants if v.accelerator in usable]
    if "_" not in expected:
        found = fitting_variants(manifest, able, hardware)
        assert [v.id for v in found] == expected.split()
        return
    with pytest.raises(InvalidInputError) as refused:
        fitting_variants(manifest, able, hardware)
    assert refused.value.code == expected
    assert refused.value.hint


def test_what_cannot_be_chosen_between_is_listed_without_the_rest():
    """The refusal names the variants that fit, and none that has nothing to do with it."""
    manifest = offer(("a", "*", "cpu"), ("b", "*", "cpu"), ("c", "nano", "cpu"))
    with pytest.raises(InvalidInputError, match=r"fit 'x' \(a \(cpu: \*\), b \(cpu: \*\)\),"):
        fitting_variants(manifest, manifest.variants, "x")


@given(st.permutations([("a", "*", "cpu"), ("b", "rpi5", "cpu"), ("c", "rpi5", "gpu")]))
def test_the_order_of_variants_decides_nothing(order):
    """Whatever the order in the manifest, the same variant is chosen."""
    manifest = offer(*order)
    able = [v for v in manifest.variants if v.accelerator == "cpu"]
    assert [v.id for v in fitting_variants(manifest, able, "rpi5")] == ["b"]
