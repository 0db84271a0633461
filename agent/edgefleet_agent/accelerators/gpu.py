"""GPUs and NPUs: onnxruntime's execution providers, and delegates of LiteRT.

agentd looks whether they are there, and believes it once a model has run on one (`Prove`). A worker
looks at nothing: it takes what agentd has put into `ModelSpec.placement`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from edgefleet_agent import nvml, providers
from edgefleet_agent.config import Accelerators, Delegate
from edgefleet_agent.ipc.control import ModelSpec
from edgefleet_agent.ports import DeviceReport
from edgefleet_agent.providers import PROVIDERS, Provider
from edgefleet_shared.errors import IncompatibleError, UnavailableError


class Proof(Protocol):
    """How an attempt to run a model ended."""

    @property
    def usable(self) -> bool:
        """Whether the model ran there and answered right."""

    @property
    def why_not(self) -> str:
        """Why not, without a full stop."""


Prove = Callable[[str, Mapping[str, Mapping[str, str]], str], Proof]
"""Proves a placement for a kind, given the facts that the result depends on."""


class Offload:
    """What runs models for a CPU; `Gpu` and `Npu` are its kinds.

    Args:
        options: Of agent.toml.
        prove: Runs a model there; None in a worker, which never looks.
        root: Where `/dev`, `/sys` and `/proc` are.
        read_card: Reads the state of the first NVIDIA GPU.
    """

    kind = ""
    title = ""

    def __init__(
        self,
        options: Accelerators | None = None,
        prove: Prove | None = None,
        root: Path = Path("/"),
        read_card: Callable[[], nvml.Card | None] = nvml.read,
    ) -> None:
        self._options = options or Accelerators()
        self._prove, self._root, self._read_card = prove, root, read_card
        self._usable: list[Provider] = []
        self._slots: set[str] = set()

    def probe(self) -> DeviceReport:
        """Look, and let a model run on what is there; every way that fails says why."""
        if self._prove is None:
            return self._absent("Only agentd looks for it.")
        if self.kind in self._options.disabled:
            return self._absent("It is disabled in agent.toml.")
        card, self._usable = self._card(), []
        why: dict[str, str] = {}
        for provider in PROVIDERS:
            if provider.kind == self.kind:
                why[provider.name] = self._why_not(provider, card)
                if not why[provider.name]:
                    self._usable.append(provider)
        names = [p.name for p in self._usable]
        for delegate in self._delegates():
            there = Path(delegate.library).is_file()
            why[delegate.name] = "" if there else f"{delegate.library} is not there"
            names += [delegate.name] * there
        reasons = {name: text for name, text in why.items() if text}
        if not names:
            return self._absent("; ".join(f"{n}: {text}" for n, text in reasons.items()) + ".")
        return DeviceReport(
            name=card.name if card else self.title,
            kind=self.kind,
            usable=True,
            driver=card.driver if card else self._kernel_driver(),
            memory_mb=card.memory_mb if card else 0,
            providers=tuple(names),
            detail={"why_not": reasons} if reasons else {},
        )

    def compatible(self, spec: ModelSpec) -> str:
        """Return '' for a model of this kind."""
        if spec.accelerator == self.kind:
            return ""
        return f"{spec.model} {spec.version} is built for {spec.accelerator!r}, not {self.kind}."

    def providers(self, spec: ModelSpec) -> Mapping[str, Mapping[str, str]]:
        """Return what the package prefers of what is usable here, else the first that is.

        In a worker: what agentd has decided.

        Raises:
            IncompatibleError: Nothing here runs it, and it is not for the CPU to step in
                (`unsupported_accelerator`).
        """
        if spec.placement:
            return spec.placement
        usable = {p.name: p for p in self._usable}
        names = [name for name in spec.providers if name in usable] or list(usable)[:1]
        placement = {name: self._settings(usable[name], spec) for name in names}
        if spec.runtime == "litert":
            placement = {d.name: {"library": d.library, **d.options} for d in self._asked(spec)}
        if not placement:
            raise IncompatibleError(
                f"No {self.title} that is usable here runs {spec.model} {spec.version}.",
                code="unsupported_accelerator",
            )
        onnx = spec.runtime == "onnxruntime" and spec.cpu_fallback
        return {**placement, providers.CPU: {}} if onnx else placement

    def prepare(self, spec: ModelSpec, files: Sequence[int], targets: Sequence[int]) -> bool:
        """Refuse: what a driver compiles is its own, and a worker's disk is closed to it.

        Raises:
            IncompatibleError: Always (`nothing_to_prepare`).
        """
        del files, targets
        raise IncompatibleError(
            f"Nothing is prepared for the {self.title} of {spec.model}.", code="nothing_to_prepare"
        )

    def reserve(self, spec: ModelSpec) -> str:
        """Return the slot, one a digest.

        Raises:
            UnavailableError: The package says how much memory it takes of the accelerator, and
                that is not free now (`device_memory`).
        """
        need, free = spec.limits.device_memory_mb, self.free_mb()
        if need and 0 <= free < need:
            raise UnavailableError(
                f"{spec.model} {spec.version} takes {need} MB of the {self.title}'s memory, and "
                f"{free} MB are free.",
                code="device_memory",
                hint="End what runs there, or let the old version go first.",
            )
        self._slots.add(spec.digest)
        return spec.digest

    def program(self, slot: str, spec: ModelSpec, files: Sequence[int]) -> None:
        """Do nothing: there is nothing to program."""

    def release(self, slot: str) -> None:
        """Forget the slot; its memory is back when the worker's process has ended."""
        self._slots.discard(slot)

    def state(self, slot: str) -> str:
        """Return `operating` for a reserved slot, else `free`."""
        return "operating" if slot in self._slots else "free"

    def free_mb(self) -> int:
        """Return the accelerator's free memory above the reserve; -1 where nobody tells."""
        card = self._card()
        return max(0, card.free_mb - self._options.memory_reserve_mb) if card else -1

    def _card(self) -> nvml.Card | None:
        return self._read_card() if self.kind == "gpu" else None

    def _why_not(self, provider: Provider, card: nvml.Card | None) -> str:
        """Return why a provider is not usable, by ever dearer questions; '' if a model ran."""
        try:
            installed = version(provider.package)
        except PackageNotFoundError:
            return f"{provider.package} is not installed"
        if not any(self._there(pattern) for pattern in provider.needs):
            return f"no driver is loaded: there is no {' or '.join(provider.needs)}"
        assert self._prove is not None
        facts = [installed, _version("onnxruntime"), platform.release(), self._kernel_driver()]
        facts += [card.name, card.driver] if card else []
        proof = self._prove(self.kind, {provider.name: dict(provider.options)}, " ".join(facts))
        return "" if proof.usable else proof.why_not

    def _settings(self, provider: Provider, spec: ModelSpec) -> dict[str, str]:
        settings = dict(provider.options)
        limit = self._options.memory_limit_mb or spec.limits.device_memory_mb
        if limit and provider.name == "CUDAExecutionProvider":
            settings["gpu_mem_limit"] = str(limit * 2**20)
        return settings

    def _delegates(self) -> list[Delegate]:
        return [d for d in self._options.delegates if d.kind == self.kind]

    def _asked(self, spec: ModelSpec) -> list[Delegate]:
        there = [d for d in self._delegates() if Path(d.library).is_file()]
        return [d for d in there if d.name in spec.providers] or there[:1]

    def _there(self, pattern: str) -> bool:
        return any(self._root.glob(pattern.lstrip("/")))

    def _kernel_driver(self) -> str:
        """Return what the kernel says of the driver: NVIDIA's version, or every GPU's ids."""
        found = [self._root / "sys/module/nvidia/version"]
        for folder in ("class/drm", "class/accel"):
            found += sorted((self._root / "sys" / folder).glob("*/device/uevent"))
        texts = [path.read_text(errors="replace") for path in found if path.is_file()]
        return " ".join(" ".join(texts).split())[:500]

    def _absent(self, why_not: str) -> DeviceReport:
        return DeviceReport(name="", kind=self.kind, usable=False, why_not=why_not)


class Gpu(Offload):
    """A graphics processor: CUDA and TensorRT, OpenVINO, WebGPU, or a delegate."""

    kind = "gpu"
    title = "GPU"


class Npu(Offload):
    """A neural processor: Intel's by OpenVINO, or a delegate such as the Edge TPU's."""

    kind = "npu"
    title = "NPU"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
