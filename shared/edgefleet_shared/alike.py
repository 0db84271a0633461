"""Variants of one version answer alike: no application may notice which of them a device took."""

from __future__ import annotations

from collections.abc import Sequence

from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.manifest import TensorSpec, Variant
from edgefleet_shared.processing_rules import Signature, outer


def check_alike(variants: Sequence[Variant]) -> None:
    """Check that every variant takes and gives what the first does: names, datatypes and shapes.

    Compared is what an application sees, with the declared steps around the model. A core in an
    FPGA alone may fix a size that the first leaves open (-1): its register window holds one call.

    Args:
        variants: Of one manifest, that of `check_manifest`.

    Raises:
        InvalidInputError: One differs (code `variant_tensors`); both are named.
    """
    for other in variants[1:]:
        check_pair(variants[0], other)


def check_pair(first: Variant, other: Variant) -> None:
    """Check one variant beside the first; raises as `check_alike`."""
    fixed = other.runtime.name == "registers"
    sides = zip(("input", "output"), seen(first), seen(other), strict=True)
    for side, wanted, found in sides:
        if why := _difference(side, wanted, found, (first.id, other.id), fixed=fixed):
            raise InvalidInputError(
                f"Variant {other.id!r} takes or gives other tensors than variant {first.id!r}: "
                f"{why}.",
                code="variant_tensors",
                hint="Applications must not notice which of the two answers. Export both with the "
                "same names, datatypes and shapes, or declare the steps around each (`processing`) "
                "so that they take and give the same; else publish them as two models.",
            )


def seen(variant: Variant) -> Signature:
    """Return what an application sends a variant and gets."""
    if variant.processing is None:
        return Signature(variant.inputs, variant.outputs)
    return outer(variant.processing, variant.inputs, variant.outputs)


def _difference(
    side: str,
    wanted: Sequence[TensorSpec],
    found: Sequence[TensorSpec],
    ids: tuple[str, str],
    *,
    fixed: bool,
) -> str:
    """Return the first difference in words, '' if there is none."""
    first, other = ids
    mine = {tensor.name: tensor for tensor in wanted}
    theirs = {tensor.name: tensor for tensor in found}
    for name, tensor in mine.items():
        if name not in theirs:
            return f"{first!r} has the {side} {_said(tensor)}, {other!r} has {_all(found)}"
        if not _same(tensor, theirs[name], fixed=fixed):
            return (
                f"{side} {name!r} is {_kind(tensor)} in {first!r} and {_kind(theirs[name])} in "
                f"{other!r}"
            )
    for name, tensor in theirs.items():
        if name not in mine:
            return f"{other!r} has the {side} {_said(tensor)}, {first!r} has {_all(wanted)}"
    if list(mine) != list(theirs):
        orders = f"{', '.join(mine)} in {first!r} and {', '.join(theirs)} in {other!r}"
        return f"the order of {side}s is {orders}"
    return ""


def _same(wanted: TensorSpec, found: TensorSpec, *, fixed: bool) -> bool:
    if wanted.datatype != found.datatype or len(wanted.shape) != len(found.shape):
        return False
    return all(
        got == want or (fixed and want == -1)
        for want, got in zip(wanted.shape, found.shape, strict=True)
    )


def _kind(tensor: TensorSpec) -> str:
    return f"{tensor.datatype} {tensor.shape}"


def _said(tensor: TensorSpec) -> str:
    return f"{tensor.name!r} ({_kind(tensor)})"


def _all(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(_said(tensor) for tensor in tensors)
