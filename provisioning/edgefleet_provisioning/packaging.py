"""From a model file to a package: lint, golden vectors, histograms, files. Talks to no server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from edgefleet_provisioning import (
    batch_check,
    container_build,
    fpga_build,
    golden,
    intake,
    licenses,
    package_build,
    processing_file,
    reference,
    runners,
    variant_build,
    variants_file,
)
from edgefleet_provisioning.arrays import Array, Arrays, read_npz
from edgefleet_provisioning.lint import LintReport, demand_clean, lint
from edgefleet_provisioning.package_build import Counters, Description
from edgefleet_provisioning.variant_build import Blob, Built
from edgefleet_provisioning.variants_file import FIRST, Wanted
from edgefleet_shared.alike import check_pair
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import (
    Batching,
    ContainerNeed,
    Manifest,
    ReferenceHistogram,
    TensorSpec,
)
from edgefleet_shared.processing import Processing

CASES_OF_SAMPLE = 4


class Request(NamedTuple):
    """What `edgefleet model publish` was given; None for a file that was not.

    `key` is that of the model's maker, who must have signed it; `signature` their bundle.
    """

    model: Path | None
    about: Description
    golden: Path | None = None
    sample: Path | None = None
    labels: Path | None = None
    max_tensor_mb: int = 2048
    key: Path | None = None
    signature: Path | None = None
    processing: Path | None = None
    variants: Path | None = None
    image: str = ""
    tensors: Path | None = None
    container: ContainerNeed = ContainerNeed()
    batching: Batching | None = None


class Draft(NamedTuple):
    """A package but for its place among the versions; `manifest` gives it one."""

    about: Description
    built: list[Built]
    reference: list[ReferenceHistogram]

    @property
    def blobs(self) -> list[Blob]:
        """Every file, of all variants, each content once."""
        return list({blob.entry.digest: blob for one in self.built for blob in one.blobs}.values())

    def manifest(self, counters: Counters, now: datetime) -> Manifest:
        """Return the manifest for a release counter and a security floor."""
        return package_build.manifest(self.about, self.built, self.reference, counters, now)


def prepare(request: Request, say: Callable[[str], None]) -> Draft:
    """Build everything that does not depend on the server.

    Args:
        request: What to build.
        say: Told what the publisher should know.

    Raises:
        LintError: The model must not be published.
        InvalidInputError: Another file does not fit it.
        TrustError: Its maker's signature was demanded and does not hold.
    """
    package_build.check(request.about)
    about = request.about
    if request.labels:
        about = about._replace(labels=package_build.read_labels(request.labels))
    if request.model is None:
        return _container_alone(request, about)
    if request.tensors:
        raise InvalidInputError(
            "--tensors is for an image alone: beside a model, the model says what it takes.",
            code="usage",
        )
    model = request.model.resolve()
    vouched = intake.demand(request.model, request.key, request.signature) if request.key else None
    about = about._replace(signed=vouched.note if vouched else "")
    report = lint(model, request.max_tensor_mb)
    demand_clean(report, request.model.name)
    sample = read_npz(request.sample, "sample") if request.sample else {}
    histograms = reference.histograms(sample, report.inputs) if sample else []
    cases = _cases(request, report, sample, say)
    first = Wanted(
        FIRST, list(about.hardware), memory_mb=about.memory_mb, load_s=about.load_s,
        model=str(model), batching=request.batching,
    )  # fmt: skip
    shop = _Shop(request, about, vouched, say)
    built = [shop.build(first, report, cases, "")]
    further = variants_file.read(request.variants) if request.variants else []
    for wanted in (*further, *([_box(request)] if request.image else [])):
        built.append(shop.further(wanted, built[0], cases))
        check_pair(built[0].variant(), built[-1].variant())
    package_build.check_licensed(about, built)
    return Draft(about, built, histograms)


def _box(request: Request) -> Wanted:
    about = request.about
    return Wanted(
        container_build.VARIANT, list(about.hardware), image=request.image,
        memory_mb=about.memory_mb, load_s=about.load_s, container=request.container,
    )  # fmt: skip


def _container_alone(request: Request, about: Description) -> Draft:
    """Build a version whose only variant is a container; its answers cannot be computed here."""
    beside = (request.key, request.processing, request.variants, request.batching)
    if not request.image or not request.tensors or any(beside):
        raise InvalidInputError(
            "Give a model file, or --image with --tensors; a maker's signature, --processing, "
            "--variants and --max-batch-size are for model files.",
            code="usage",
        )
    tensors = container_build.read_tensors(request.tensors)
    sample = read_npz(request.sample, "sample") if request.sample else {}
    histograms = reference.histograms(sample, tensors.inputs) if sample else []
    cases: list[golden.Case] = []
    if request.golden:
        cases = container_build.cases_of(read_npz(request.golden, "golden file"), tensors)
    data = variant_build.data_blobs(golden.encode(cases) if cases else b"", about.labels)
    blobs = package_build.blobs(about, [], data, "")
    built = [Built(_box(request), container_build.report(tensors), blobs, len(cases))]
    package_build.check_licensed(about, built)
    return Draft(about, built, histograms)


class _Shop(NamedTuple):
    """Builds the variants of one package."""

    request: Request
    about: Description
    vouched: intake.Vouched | None
    say: Callable[[str], None]

    def build(
        self, wanted: Wanted, report: LintReport, cases: Sequence[golden.Case], prefix: str
    ) -> Built:
        """Return a variant of a model: what does not even load here must not be published."""
        model = Path(wanted.model)
        run = runners.load(model, report.runtime)
        cases = golden.compute(run, cases, report.outputs) if cases else []
        vectors = golden.encode(cases) if cases else b""
        spdx = licenses.check(self.about.license)
        steps = self.steps(wanted, report)
        blobs = package_build.blobs(
            self.about,
            variant_build.model_blobs(report, model.parent, spdx),
            variant_build.data_blobs(vectors, self.about.labels),
            prefix,
        )
        if self.vouched:
            intake.check_package(self.vouched, model, blobs, prefix.rstrip("/") or ".")
        built = Built(wanted, report, blobs, len(cases), steps)
        batch_check.check(built.variant(), run, cases)
        return built

    def steps(self, wanted: Wanted, report: LintReport) -> Processing | None:
        """Return what is declared around a variant, checked against its tensors."""
        path = self.request.processing
        if wanted.processing and self.request.variants is not None:
            path = self.request.variants.resolve().parent / wanted.processing
        if path is None:
            return None
        steps = processing_file.read(path)
        processing_file.check(steps, report.inputs, report.outputs, len(self.about.labels))
        return steps

    def further(self, wanted: Wanted, first: Built, cases: Sequence[golden.Case]) -> Built:
        """Return one more variant; golden inputs are the first one's unless it has its own."""
        if wanted.image:
            data = [blob for blob in first.blobs if blob.entry.role in {"golden", "labels"}]
            steps = self.steps(wanted, first.report)
            return Built(wanted, first.report, data, first.cases, steps)
        assert self.request.variants is not None
        folder = self.request.variants.resolve().parent
        extra: list[Blob] = []
        if wanted.fpga is not None:
            wanted, extra = fpga_build.files(wanted, folder)
        if wanted.is_core:
            return fpga_build.core(wanted, first, extra, folder)
        model = folder / wanted.model
        report = lint(model, self.request.max_tensor_mb)
        demand_clean(report, model.name)
        # Exporters order tensors as they like; the first variant's order is what applications see.
        report = report._replace(
            inputs=_ordered(report.inputs, first.report.inputs),
            outputs=_ordered(report.outputs, first.report.outputs),
        )
        if wanted.golden:
            arrays = read_npz(folder / wanted.golden, "golden file")
            cases = golden.cases_of(arrays, report.inputs, report.outputs)
        elif report.inputs != first.report.inputs:
            self.say(
                f"Variant {wanted.id} has no golden vectors: it only proves that it loads, and a "
                f"device that another variant fits too refuses the version (ambiguous_variant)."
            )
            cases = []
        else:
            cases = [golden.Case(case.inputs, {}) for case in cases]
        wanted = structs.replace(wanted, model=str(model))
        built = self.build(wanted, report, cases, f"{wanted.id}/")
        return built._replace(blobs=[*built.blobs, *extra])


def _ordered(tensors: list[TensorSpec], like: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return tensors in the order that the first variant has them; strange ones at the end."""
    places = {tensor.name: place for place, tensor in enumerate(like)}
    return sorted(tensors, key=lambda tensor: places.get(tensor.name, len(places)))


def _cases(
    request: Request, report: LintReport, sample: Arrays, say: Callable[[str], None]
) -> list[golden.Case]:
    if request.golden:
        arrays = read_npz(request.golden, "golden file")
        return golden.cases_of(arrays, report.inputs, report.outputs)
    if sample and set(sample) == {spec.name for spec in report.inputs}:
        say(f"No --golden: the first {CASES_OF_SAMPLE} samples become golden vectors.")
        arrays = {
            spec.name: _calls(sample[spec.name], spec)[:CASES_OF_SAMPLE] for spec in report.inputs
        }
        return golden.cases_of(arrays, report.inputs, report.outputs)
    say("No --golden: devices will only prove that the model loads, not that it answers right.")
    return []


def _calls(array: Array, spec: TensorSpec) -> Array:
    """Return samples as calls of one sample each: with a batch axis, if the model has one."""
    return array[:, None] if array.ndim == len(spec.shape) else array
