"""From a model file to a package: lint, golden vectors, histograms, files. Talks to no server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from edgefleet_provisioning import golden, intake, package_build, processing_file, reference
from edgefleet_provisioning.arrays import Array, Arrays, read_npz
from edgefleet_provisioning.lint import LintReport, demand_clean, lint
from edgefleet_provisioning.package_build import Blob, Counters, Description
from edgefleet_shared.package import Manifest, ReferenceHistogram, TensorSpec

CASES_OF_SAMPLE = 4


class Request(NamedTuple):
    """What `edgefleet model publish` was given; None for a file that was not.

    `key` is that of the model's maker, who must have signed it; `signature` their bundle.
    """

    model: Path
    about: Description
    golden: Path | None = None
    sample: Path | None = None
    labels: Path | None = None
    max_tensor_mb: int = 2048
    key: Path | None = None
    signature: Path | None = None
    processing: Path | None = None


class Draft(NamedTuple):
    """A package but for its place among the versions; `manifest` gives it one."""

    report: LintReport
    about: Description
    blobs: list[Blob]
    reference: list[ReferenceHistogram]
    cases: int

    def manifest(self, counters: Counters, now: datetime) -> Manifest:
        """Return the manifest for a release counter and a security floor."""
        return package_build.manifest(
            self.report, self.about, self.blobs, self.reference, self.cases, counters, now
        )


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
    model = request.model.resolve()
    vouched = intake.demand(request.model, request.key, request.signature) if request.key else None
    about = about._replace(signed=vouched.note if vouched else "")
    report = lint(model, request.max_tensor_mb)
    demand_clean(report, request.model.name)
    if request.processing:
        steps = processing_file.read(request.processing)
        processing_file.check(steps, report.inputs, report.outputs, len(about.labels))
        about = about._replace(processing=steps)
    sample = read_npz(request.sample, "sample") if request.sample else {}
    histograms = reference.histograms(sample, report.inputs) if sample else []
    cases = _cases(request, report, sample, say)
    vectors = golden.encode(golden.compute(model, cases, report.outputs)) if cases else b""
    if not cases:
        golden.open_session(model)  # what does not even load here must not be published
    blobs = package_build.blobs(report, model.parent, about, vectors)
    if vouched:
        intake.check_package(vouched, request.model, blobs)
    return Draft(report, about, blobs, histograms, len(cases))


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
