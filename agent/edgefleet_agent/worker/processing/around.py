"""A session with a package's processing around it: images in, answers out."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence

import numpy as np

from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ports import Session
from edgefleet_agent.worker import tensors
from edgefleet_agent.worker.processing import after, before, images
from edgefleet_agent.worker.processing.after import Labels
from edgefleet_shared import processing as steps
from edgefleet_shared.errors import InvalidInputError
from edgefleet_shared.package import TensorSpec
from edgefleet_shared.processing_rules import check_labels, model_input, outer

LABELS_MAX_BYTES = 4 * 2**20


class Answers(dict[str, np.ndarray]):
    """Outputs after processing. `nonfinite`: the model itself gave NaN or infinity."""

    nonfinite = False


class Around:
    """Implements `ports.Session` for a model's outer signature.

    Args:
        session: The model.
        spec: Its specification, with `processing`.
        labels: The package's labels; none where no step needs them.

    Raises:
        InvalidInputError: Labels are fewer than classes (code `manifest_processing`).
    """

    def __init__(self, session: Session, spec: ModelSpec, labels: Sequence[str]) -> None:
        assert spec.processing is not None
        check_labels(spec.processing, spec.outputs, len(labels))
        self._session = session
        self._processing = spec.processing
        self._labels = Labels(labels)
        self._outputs = [tensor.name for tensor in spec.outputs]
        self.inputs, self.outputs = outer(spec.processing, spec.inputs, spec.outputs)
        self._target = model_input(spec.processing, spec.inputs).name if spec.processing.pre else ""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outer outputs by name.

        Raises:
            InvalidInputError: The image cannot be used.
            ValueError: An input does not fit the model.
            RuntimeError: The runtime failed, or its outputs do not suit a step.
        """
        given, geometry = self.before(inputs)
        return self.after(self._session.run(given), geometry)

    def before(
        self, inputs: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], images.Geometry | None]:
        """Return what the model takes, and where in an image that was.

        Raises:
            InvalidInputError: The image cannot be used.
        """
        if not self._processing.pre:
            return inputs, None
        given = dict(inputs)
        image = given.pop(self._processing.image)
        given[self._target], geometry = before.prepare(image, self._processing.pre)
        return given, geometry

    def after(
        self, found: Mapping[str, np.ndarray], geometry: images.Geometry | None
    ) -> dict[str, np.ndarray]:
        """Return the outer outputs of what the model gave.

        Raises:
            RuntimeError: An output does not suit a step.
        """
        answers = Answers()
        answers.nonfinite = any(
            array.dtype.kind == "f" and not np.isfinite(array).all() for array in found.values()
        )
        model = {name: found[name] for name in self._outputs}
        answers.update(after.finish(model, self._processing.post, self._labels, geometry))
        return answers

    def prove(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Answer once, with a grey image in the place of the input that `pre` makes.

        Args:
            inputs: Inputs that the model takes.

        Raises:
            ValueError: The answer is not as the steps say.
            RuntimeError: A step failed.
        """
        given = dict(inputs)
        if self._processing.pre:
            given.pop(self._target)
            given[self._processing.image] = _grey(self._processing.pre[0])
        found = self.run(given)
        for want in self.outputs:
            check(found[want.name], want)


def check(array: np.ndarray, want: TensorSpec) -> None:
    """Compare an outer output with what the steps say.

    Raises:
        ValueError: They differ.
    """
    same = array.ndim == len(want.shape) and all(
        size in {-1, got} for got, size in zip(array.shape, want.shape, strict=True)
    )
    if not same or tensors.datatype(array) != want.datatype:
        raise ValueError(
            f"The processing answers {want.name!r} as {tensors.datatype(array)} "
            f"{list(array.shape)}, and not as {want.datatype} {want.shape}."
        )


def _grey(step: steps.Pre) -> np.ndarray:
    """Return a small grey image as an application would send it."""
    channels = 1 if getattr(step, "channels", "") == "GRAY" else 3
    if isinstance(step, steps.Frame):
        return np.full((48, 64, channels), 128, np.uint8)
    file = io.BytesIO()
    images.load().new("L", (64, 48), 128).save(file, "JPEG")
    return np.array([file.getvalue()], object)


def read_labels(spec: ModelSpec, files: Sequence[int]) -> list[str]:
    """Return the labels of a package, if a step of it needs them.

    Args:
        spec: The specification.
        files: Descriptors of verified blobs, in the order of `spec.files`.

    Raises:
        InvalidInputError: Too long, not UTF-8, or missing (code `load_failed`).
    """
    if spec.processing is None or not spec.processing.labelled:
        return []
    for entry, fd in zip(spec.files, files, strict=True):
        if entry.role == "labels" and entry.size <= LABELS_MAX_BYTES:
            try:
                text = os.pread(fd, entry.size, 0).decode()
            except UnicodeDecodeError:
                break
            return text.removesuffix("\n").split("\n")
    raise InvalidInputError(
        "The package's labels are missing, too long, or not UTF-8.", code="load_failed"
    )
