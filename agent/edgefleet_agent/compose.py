"""The one place that names adapters and builds agentd."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from edgefleet_agent import __version__, asking, durable, machine
from edgefleet_agent.accelerators.cpu import Cpu, cores
from edgefleet_agent.accelerators.fpga import vitis
from edgefleet_agent.accelerators.fpga.region import Region
from edgefleet_agent.accelerators.gpu import Gpu, Npu
from edgefleet_agent.admission import available_kb
from edgefleet_agent.choosing import ChoiceBook
from edgefleet_agent.config import Config
from edgefleet_agent.containers import making as containers
from edgefleet_agent.daemon import Daemon, Parts
from edgefleet_agent.events import Emitter
from edgefleet_agent.fetch import Fetcher
from edgefleet_agent.gateway_client import GatewayClient
from edgefleet_agent.gateway_link import GatewayLink
from edgefleet_agent.identity import Identity
from edgefleet_agent.inbox import Inbox
from edgefleet_agent.journal import Journal
from edgefleet_agent.measured import Measured
from edgefleet_agent.notify import Notifier
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.ports import Clock, DeviceReport, Fabric, Offload, Transport
from edgefleet_agent.preparation import Prepared
from edgefleet_agent.proof import ProofBook
from edgefleet_agent.status import StatusFile
from edgefleet_agent.store import Store
from edgefleet_agent.swap_lock import SwapLock
from edgefleet_agent.telemetry import Telemetry
from edgefleet_agent.tls import Tls
from edgefleet_agent.together import Together
from edgefleet_agent.toolbox import Toolbox
from edgefleet_agent.transports.mqtt import MqttTransport
from edgefleet_agent.trust.acceptance import Acceptance
from edgefleet_agent.twin_settings import Live
from edgefleet_agent.ways import Way, way_of
from edgefleet_shared.errors import EdgeFleetError, InvalidInputError, UnavailableError
from edgefleet_shared.identifiers import new_id
from edgefleet_shared.steps import Step
from edgefleet_shared.trust import format_time

GATEWAY_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # its wheels phone home otherwise
    # Both are 128 KiB otherwise, and each large request came on fresh pages: 1 ms for 600 kB.
    "MALLOC_TRIM_THRESHOLD_": "4194304",
    "MALLOC_MMAP_THRESHOLD_": "2097152",
    "OPENBLAS_NUM_THREADS": "1",
}


def offloads_of(config: Config) -> dict[str, Offload]:
    """Return the accelerators that say by what providers a model is opened, by kind.

    One that has not been proved on this machine is tried when it is probed, in a process of its
    own; that may take a while once, and never without one of the packages that drive it.
    """
    prove = ProofBook(config.state / "accelerators.json", config.accelerators.probe_s)
    return {"gpu": Gpu(config.accelerators, prove), "npu": Npu(config.accelerators, prove)}


def probe_all(config: Config, offloads: Mapping[str, Offload] | None = None) -> list[DeviceReport]:
    """Return what probing every accelerator found.

    Args:
        config: What was configured.
        offloads: Those of `offloads_of` that shall know of it; None: of this call alone.
    """
    found = offloads_of(config) if offloads is None else offloads
    return [one.probe() for one in (Cpu(), *found.values(), fpga(config))]


def fpga(config: Config) -> Fabric:
    """Return the FPGA as agentd has it; what its slots hold is written down in the state folder."""
    return Region(config.fpga, config.state)


def lock(state: Path) -> TextIO:
    """Take the state folder for this process; keep the file open as long as it is wanted.

    Raises:
        UnavailableError: Another agentd has it (code `agent_running`).
    """
    file = (state / "agentd.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UnavailableError(
            f"An agent is already running on {state}.",
            code="agent_running",
            hint="Stop it first, or give another state_dir.",
        ) from error
    return file


def build(
    config: Config,
    *,
    transport: Transport | None = None,
    gateway_command: list[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Clock = time.time,
) -> Daemon:
    """Build the agent; nothing is started.

    Args:
        config: What was configured.
        transport: Instead of the configured one.
        gateway_command: Instead of the gateway of this distribution.
        environ: For systemd's variables and the gateway.
        clock: Seconds since the epoch.

    Raises:
        InvalidInputError: Not enrolled, or a file of the state folder is damaged.
    """
    state, run = durable.make_folder(config.state), durable.make_folder(config.run, 0o755)
    identity, boot = Identity(state / "identity", config.identity.key), new_id()
    acceptance = Acceptance(state, identity.who, config.hardware_id, identity.root, clock)

    daemon: Daemon

    def gateway() -> GatewayClient:
        return daemon.gateway()

    def stamp() -> str:
        return format_time(acceptance.now())

    way, offloads = way_of(config, identity.enrollment.transport), offloads_of(config)
    live = Live(config, state / "twin.json" if way.kind == "iothub" else None)
    outbox = Outbox(state / "outbox.db", config.telemetry.outbox_max_bytes)
    emitter = _emitter(outbox, stamp)
    here = machine.describe(config.hardware_id, probe_all(config, offloads))
    store, journal = Store(state / "store", config.store.max_bytes), Journal(state / "journal.json")
    software = _software()
    tools = Toolbox(
        journal=journal,
        store=store,
        prepared=_prepared(config, f"{software}; {here.fingerprint}"),
        measured=Measured(state / "measured.json", software),
        inbox=Inbox(state / "inbox", store),
        fetcher=_fetcher(config, store, identity, acceptance, emitter),
        outbox=outbox,
        telemetry=Telemetry(outbox, stamp),
        gateway=gateway,
        security_floor=acceptance.security_floor,
        together=Together(journal, SwapLock(state).read),
        containers=containers.make(config, identity.fleet, identity.device),
        stamp=stamp,
        hardware=config.hardware_id,
        machine=here,
        choices=ChoiceBook(state / "variants.json", here.fingerprint),
        offloads=offloads,
        threads=_threads(config),
        software=software,
        reserve_kb=config.inference.memory_reserve_mb * 1024,
        fpga=fpga(config),
        available_kb=available_kb,
    )
    parts = Parts(
        config, identity, acceptance, tools, emitter,
        transport or _transport(config, way, identity, boot, acceptance, live), boot,
        StatusFile(run, boot, identity.fleet, identity.device, way[:2]), Notifier(environ),
        live, way.mendable,
    )  # fmt: skip
    return (daemon := Daemon(parts, _link(config, gateway_command, environ)))


def _link(
    config: Config, gateway_command: list[str] | None, environ: Mapping[str, str]
) -> Callable[[Daemon], GatewayLink]:
    command = gateway_command or command_of_gateway(config)
    around = environ_of_gateway(config, environ)
    return lambda events: GatewayLink(config.run, command, around, events)


def _prepared(config: Config, made_by: str) -> Prepared:
    return Prepared(config.state / "prepared", config.store.prepared_max_bytes, made_by)


def _emitter(outbox: Outbox, stamp: Callable[[], str]) -> Emitter:
    emitter = Emitter(outbox, stamp)
    if outbox.lost:
        text = "the outbox was damaged and is begun anew."
        emitter.tell(Step.REPORT, "outbox_lost", text, level="error")
    return emitter


def environ_of_gateway(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the gateway, and so of its workers."""
    environ = {**environ, **vitis.environment(config.fpga.vitis_config, str(config.state / "dpu"))}
    return {k: v for k, v in {**GATEWAY_ENVIRONMENT, **environ}.items() if k != "NOTIFY_SOCKET"}


def _software() -> str:
    """Return agent and runtimes with their versions; reads no more than what pip wrote."""
    found = [f"edgefleet-agent {__version__}"]
    for name in ("onnxruntime", "ai-edge-litert", "tflite-runtime"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def _fetcher(
    config: Config, store: Store, identity: Identity, acceptance: Acceptance, emitter: Emitter
) -> Fetcher:
    def authorization(url: str) -> str:
        return identity.authorization(url, acceptance.now())

    def refused(error: EdgeFleetError) -> None:
        emitter.error(Step.FETCH, error)

    return Fetcher(store, config.store, authorization, refused)


def _transport(
    config: Config, way: Way, identity: Identity, boot: str, acceptance: Acceptance, live: Live
) -> Transport:
    if way.kind == "iothub":
        certificate, key = identity.certificate_file, identity.key_file
        return iothub(
            config,
            way.url,
            identity.device,
            Tls(identity.ca_file, certificate, key),
            lambda: asking.fetch(identity, acceptance.now()),
            live.heed,
            boot,
        )
    ca = Path(config.transport.ca) if config.transport.ca else identity.ca_file
    return MqttTransport(
        way.url,
        identity.device,
        boot,
        __version__,
        Tls(ca, identity.certificate_file, identity.key_file),
        config.transport.keepalive_s,
        config.transport.backoff_max_s,
    )


def iothub(
    config: Config,
    url: str,
    device: str,
    tls: Tls,
    fetch: Callable[[], bytes | None],
    configured: Callable[[Mapping[str, Any], bool], None],
    boot: str = "",
) -> Transport:
    """Return the transport over Azure IoT Hub.

    Args:
        config: What was configured.
        url: `iothub://` or `dps://`.
        device: Its id at the hub.
        tls: The fleet's certificate and key.
        fetch: Returns the desired document over HTTPS.
        configured: Told what our section of the twin holds, and whether that is all of it.
        boot: This start of the agent.

    Raises:
        InvalidInputError: The SDK is not installed, or an address is none (code `configuration`).
    """
    try:
        # Here, as no other device needs the extra, nor the memory of the SDK.
        from edgefleet_agent.transports.iothub.clients import Credentials
        from edgefleet_agent.transports.iothub.speech import Who
        from edgefleet_agent.transports.iothub.transport import IotHubTransport
    except ImportError as error:
        raise InvalidInputError(
            f"The transport is Azure IoT Hub, and its SDK cannot be used: {error}.",
            code="configuration",
            hint="Install the agent's extra edgefleet-agent[iothub].",
        ) from error
    options, ca = config.iothub, config.transport.ca
    shown = Tls(
        tls.ca,
        Path(options.certificate_file or tls.certificate),
        Path(options.key_file or tls.key),
    )
    product = f"edgefleet-agent/{__version__}"
    known = Credentials(
        device, options, shown, Path(ca) if ca else None, config.transport.keepalive_s, product
    )
    who, longest = Who(device, boot, __version__), config.transport.backoff_max_s
    return IotHubTransport(url, who, known, config.state, fetch, longest, configured)


def _threads(config: Config) -> int:
    return config.inference.threads or cores()


def command_of_gateway(config: Config) -> list[str]:
    """Return how the gateway of this distribution is started."""
    run, inference = config.run, config.inference
    return [
        sys.executable, "-m", "edgefleet_agent.gateway",
        "--control", str(run / "control.sock"),
        "--uds", str(run / "infer.sock"),
        "--tcp", inference.tcp,
        "--addr-file", str(run / "infer.addr"),
        "--queue-limit", str(inference.queue_limit), "--lend-after", str(inference.lend_after),
        "--timeout-s", str(inference.timeout_s),
        "--max-body-bytes", str(inference.max_body_bytes),
        "--max-connections", str(inference.max_connections),
        "--idle-timeout-s", str(inference.idle_timeout_s),
        "--threads", str(_threads(config)),
        "--orphan-timeout-s", str(inference.orphan_timeout_s),
        "--grpc", inference.grpc,
        "--cgroup", inference.cgroup,
        *(["--triton-metrics"] if inference.triton_metrics else []),
    ]  # fmt: skip
