"""`edgefleet-agent models`: what is loaded, what stands by, what lies in the store, how it does."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from edgefleet_agent.choosing import read_choices
from edgefleet_agent.config import Config
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.inspection.denied import no_gateway
from edgefleet_agent.inspection.output import say, size, table
from edgefleet_agent.ipc.control import DigestStats
from edgefleet_agent.journal import SlotRecord, VersionRef, read_document
from edgefleet_agent.store import blob_path
from edgefleet_shared import histogram
from edgefleet_shared.errors import EdgeFleetError, UnavailableError
from edgefleet_shared.package import Manifest, Variant, decode_manifest


def run(config: Config, options: argparse.Namespace) -> int:
    """Print every version that a slot has, with what the gateway counted."""
    document = read_document(config.state / "journal.json")
    stats = _stats(config)
    found = [
        _entry(config, name, place, version, stats)
        for name, record in sorted(document.slots.items())
        for place, version in _versions(record)
    ]
    rows = [
        (
            e["model"], e["version"], e["place"], e["role"] or "-", e["variant"],
            f"{e['runtime']}/{e['accelerator']}", size(e["bytes"]),
            "-" if e["requests"] is None else e["requests"], e["p50_us"] or "-", e["p99_us"] or "-",
        )
        for e in found
    ]  # fmt: skip
    head = ("MODEL", "VERSION", "SLOT", "GATEWAY", "VARIANT", "RUNS ON", "SIZE", "REQUESTS",
            "P50 us", "P99 us")  # fmt: skip
    lines = table(head, rows) or ["No model has been assigned to this device yet."]
    if stats is None:
        why = no_gateway(config.run)
        lines.append(f"What the gateway has loaded and counted is not known: {why}.")
    for entry in found:
        name = f"{entry['model']} {entry['version']}"
        lines += [f"{name}: {entry[key]}" for key in ("problem", "choice") if entry[key]]
    shown = {"gateway": stats is not None, "models": found}
    say(shown, lines, as_json=options.json)
    return 0


def _versions(record: SlotRecord) -> list[tuple[str, VersionRef]]:
    staged = record.deployment.staged if record.deployment else None
    named = [("active", record.active), ("previous", record.previous), ("staged", staged)]
    seen: set[str] = set()
    found = []
    for place, version in named:
        if version is not None and version.digest not in seen:
            seen.add(version.digest)
            found.append((place, version))
    return found


def _entry(
    config: Config,
    slot: str,
    place: str,
    version: VersionRef,
    stats: Mapping[str, DigestStats] | None,
) -> dict[str, Any]:
    manifest, problem = _manifest(config, version)
    choices = read_choices(config.state / "variants.json")
    choice = next((c for c in choices if c.digest == version.digest), None)
    variant = _variant(manifest, version)
    known = (stats or {}).get(version.digest)
    nothing = None if stats is None else 0
    return {
        "slot": slot,
        "place": place,
        "model": version.model,
        "version": version.version,
        "digest": version.digest,
        "release_counter": version.release_counter,
        "variant": version.variant,
        "runtime": variant.runtime.name if variant else "?",
        "accelerator": variant.accelerator if variant else "?",
        "inputs": [_tensor(t) for t in variant.inputs] if variant else [],
        "outputs": [_tensor(t) for t in variant.outputs] if variant else [],
        "bytes": version.size + sum(version.blobs.values()),
        "role": known.role if known else "",
        "requests": known.requests if known else nothing,
        "errors": known.server_errors + known.rejected if known else nothing,
        "crashes": known.crashes if known else nothing,
        "memory_kb": known.memory_kb if known else nothing,
        "p50_us": _us(known, 0.5),
        "p99_us": _us(known, 0.99),
        "problem": problem,
        "choice": choice.reason if choice else "",
        "measured": msgspec.to_builtins(choice.measured) if choice else [],
        "refused": choice.refused if choice else {},
    }


def _manifest(config: Config, version: VersionRef) -> tuple[Manifest | None, str]:
    try:
        data = blob_path(config.state / "store", version.digest).read_bytes()
        return decode_manifest(data), ""
    except FileNotFoundError:
        return None, "its manifest is not in the store"
    except (OSError, EdgeFleetError) as error:
        return None, str(error)


def _variant(manifest: Manifest | None, version: VersionRef) -> Variant | None:
    variants = manifest.variants if manifest else []
    return next((v for v in variants if v.id == version.variant), None)


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def _us(stats: DigestStats | None, q: float) -> int | None:
    value = histogram.quantile_ns(stats.latency, q) if stats else None
    return None if value is None else value // 1000


def _stats(config: Config) -> dict[str, DigestStats] | None:
    """Return the gateway's counters by digest; None if it does not answer."""
    with contextlib.suppress(UnavailableError):
        client = GatewayClient(config.run / "control.sock", lambda _: None)
        try:
            return {one.digest: one for one in client.stats()}
        finally:
            client.close()
    return None
