"""The agent's configuration: one frozen value, read once from TOML and `EDGEFLEET_AGENT_*`."""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefleet_agent.addresses import parse_address
from edgefleet_agent.orders import WhenEmpty
from edgefleet_shared.errors import InvalidInputError

SOCKET_PATH_BYTES = 107
"""The longest path that Linux takes for a Unix socket."""

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0.01)]


class Inference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where applications find the models: a Unix socket in `run_dir`, and a loopback address."""

    tcp: str = "127.0.0.1:8500"  # '' = no TCP; port 0 = any free port, see run_dir/infer.addr
    queue_limit: Count = 256  # waiting requests a model
    timeout_s: Seconds = 30.0  # a request without a deadline of its own
    threads: Annotated[int, Meta(ge=0)] = 1  # intra-op threads a worker; 0 = all it may use
    max_body_bytes: Count = 64 * 1024 * 1024
    max_connections: Annotated[int, Meta(ge=8, le=16384)] = 1024
    idle_timeout_s: Annotated[float, Meta(ge=0)] = 3600.0  # of a connection; 0 = never closed
    grpc: str = ""  # loopback address of the gRPC door; '' = none, port 0 as for tcp
    cgroup: str = "auto"  # of workers: what systemd delegates, a cgroup2 folder, or '' = none
    triton_metrics: bool = False  # Triton's names among the metrics, unasked
    memory_reserve_mb: Annotated[int, Meta(ge=0)] = 64  # a swap leaves so much memory available
    lend_after: Annotated[int, Meta(ge=0)] = 4  # requests in a row; 0 = every request is relayed
    orphan_timeout_s: Annotated[float, Meta(ge=0)] = (
        0.0  # gateway ends after this long without agentd; 0 = serves on
    )


class Transport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach the fleet manager; an empty url means the one given at enrolment."""

    kind: Literal["", "mqtt", "iothub"] = ""  # '' = what url is, or else as enrolled
    url: str = (
        ""  # mqtt[s]://host:port, iothub://host or dps://scope; counts for its own kind alone
    )
    # PEM file of who may sign the server's certificate; '' = the fleet's device CA on MQTT, the
    # system's authorities on IoT Hub
    ca: str = ""
    keepalive_s: Annotated[int, Meta(ge=1, le=65535)] = 60
    backoff_max_s: Seconds = 300.0
    ask_s: Annotated[float, Meta(ge=0)] = 300.0  # without an answer, ask over HTTP; 0 = never


class IotHub(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What Azure IoT Hub needs beside `transport`."""

    auth: Literal["x509", "sas", "edge"] = "x509"  # edge = as a module of the IoT Edge runtime
    certificate_file: str = ""  # PEM, for x509; '' = the fleet's own certificate and key
    key_file: str = (
        ""  # of that certificate; for sas: base64 key, or the device's connection string
    )
    key_is: Literal["device", "group"] = "device"  # group: the device's is derived from it
    registration_id: str = ""  # at the Device Provisioning Service; '' = the device's id
    module: str = ""  # id of a module identity; '' = the device itself
    gateway: str = ""  # host name of an IoT Edge or protocol gateway to connect to instead
    websockets: bool = False  # port 443 instead of 8883
    proxy: str = ""  # http://host:port or socks5://[user:password@]host:port
    token_ttl_s: Annotated[int, Meta(ge=121, le=31_536_000)] = 3600  # renewed 120 s before its end
    report_min_s: Annotated[float, Meta(ge=0)] = 1.0  # between two updates of the twin


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often and how much is reported."""

    interval_s: Annotated[float, Meta(ge=0.1)] = 60.0
    outbox_max_bytes: Count = 16 * 1024 * 1024


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Disk for packages."""

    max_bytes: Count = 8 * 1024**3
    fetch_min_bytes_per_s: Annotated[int, Meta(ge=0)] = (
        256  # slower than this for `fetch_stall_s` is given up and resumed
    )
    fetch_stall_s: Seconds = 30.0
    prepared_max_bytes: Annotated[int, Meta(ge=0)] = (
        2 * 1024**3  # for what the device makes of packages to load them fast; 0 = nothing
    )


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The device's key and when it is renewed."""

    key: str = ""  # pkcs11: URI (RFC 7512) of a key on a token; '' = state_dir/identity/device.key
    renew: bool = True  # by itself; `edgefleet-agent renew` works always
    renew_at: Annotated[float, Meta(gt=0, lt=1)] = 2 / 3  # of the certificate's life


class FpgaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the FPGA is programmed, and what is loaded in it for good; folders are the kernel's."""

    strategy: Literal["auto", "dfx-mgr", "xrt", "overlay", "sysfs", "none"] = "auto"
    manager: str = ""  # in class/fpga_manager; '' = the first
    board: str = ""  # what variants name; '' = the device tree's compatible strings
    shell: str = ""  # UUID of the static design; '' = not known, and not compared
    base: str = ""  # the static design's folder below firmware/xilinx, for dfx-mgr
    slots: Annotated[int, Meta(ge=1, le=16)] = 1  # regions of the static design
    fingerprint: str = ""  # of the DPU in it
    sysfs: str = "/sys"
    configfs: str = "/sys/kernel/config"
    firmware: str = "/lib/firmware"
    dev: str = "/dev"
    dfx_mgr: str = "dfx-mgr-client"  # a program on PATH, or a path
    xrt: str = ""  # the same; '' = xrt-smi or xbutil
    xrt_device: str = ""  # PCI address; '' = the only one
    vitis_config: str = ""  # vaip_config.json of onnxruntime's VitisAI provider
    timeout_s: Seconds = 30.0  # one act of programming


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who we are to a registry of container images; the password is the file's first line."""

    username: str
    password_file: str


class Containers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Container variants: dockerd, and who runs in them."""

    socket: str = "/var/run/docker.sock"  # of dockerd; '' = no containers
    user: Annotated[str, Meta(pattern=r"^([1-9][0-9]*:[0-9]+|0:0)?$")] = (
        ""  # UID:GID in a container; '' = 65532:65532, or the agent's own where that is not root
    )
    registries: dict[str, Registry] = {}


class Delegate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TFLite delegate of this device; no package has a say in it."""

    name: str  # what packages name among their providers
    kind: Literal["gpu", "npu"]
    library: str  # absolute path, for example /usr/lib/libedgetpu.so.1
    options: dict[str, str] = {}


class Accelerators(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What models may run on beside the CPU."""

    disabled: tuple[Literal["gpu", "npu"], ...] = ()
    delegates: tuple[Delegate, ...] = ()
    memory_reserve_mb: Annotated[int, Meta(ge=0)] = 256  # of a GPU's memory, left to others
    memory_limit_mb: Annotated[int, Meta(ge=0)] = 0  # of a CUDA worker's arena; 0 = the package's
    probe_s: Annotated[float, Meta(ge=1, le=600)] = 60.0  # one proof that an accelerator is usable


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it. `state_dir` must survive a reboot, `run_dir` need not.

    Both are absolute once loaded; in the file they are relative to the file.
    """

    state_dir: str = "/var/lib/edgefleet"
    run_dir: str = "/run/edgefleet"
    hardware: str = ""  # exact string that packages name; '' = generic-<machine>
    log_level: str = "INFO"
    empty_assignment: WhenEmpty = "stop"  # what one that names no slot means: stop all, or keep
    inference: Inference = Inference()
    transport: Transport = Transport()
    iothub: IotHub = IotHub()
    telemetry: Telemetry = Telemetry()
    store: Store = Store()
    identity: Identity = Identity()
    fpga: FpgaOptions = FpgaOptions()
    containers: Containers = Containers()
    accelerators: Accelerators = Accelerators()

    @property
    def state(self) -> Path:
        """The state folder."""
        return Path(self.state_dir)

    @property
    def run(self) -> Path:
        """The run folder: control.sock, infer.sock, infer.addr."""
        return Path(self.run_dir)

    @property
    def hardware_id(self) -> str:
        """What packages must name to run here."""
        return self.hardware or f"generic-{platform.machine()}"


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration.

    Args:
        path: A TOML file, or None for the defaults.
        environ: `EDGEFLEET_AGENT_STATE_DIR`, `_RUN_DIR`, `_HARDWARE`, `_LOG_LEVEL`,
            `_TRANSPORT_KIND`, `_TRANSPORT_URL` and `_IOTHUB_AUTH` win over the file.

    Raises:
        InvalidInputError: The file is missing, is not TOML, or holds an unknown key or a value that
            cannot be.
    """
    try:
        fields = tomllib.loads(path.read_text()) if path else {}
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(
            f"The configuration {path} cannot be read: {why}.",
            code="configuration",
            hint="Give a TOML file; docs/reference.md lists its keys.",
        ) from error
    for key in ("state_dir", "run_dir", "hardware", "log_level"):
        if value := environ.get(f"EDGEFLEET_AGENT_{key.upper()}"):
            fields[key] = value
    for table, key in (("transport", "kind"), ("transport", "url"), ("iothub", "auth")):
        value = environ.get(f"EDGEFLEET_AGENT_{table}_{key}".upper())
        if value and isinstance(fields.setdefault(table, {}), dict):
            fields[table][key] = value
    try:
        config = msgspec.convert(fields, Config)
    except msgspec.ValidationError as error:
        raise InvalidInputError(
            f"The configuration {path} does not hold: {error}.",
            code="configuration",
            hint="docs/reference.md lists every key with its type and default.",
        ) from error
    # The gateway and its workers run in another folder; a relative path would lead them astray.
    folder = path.resolve().parent if path else Path.cwd()
    config = msgspec.structs.replace(
        config, state_dir=str(folder / config.state_dir), run_dir=str(folder / config.run_dir)
    )
    # Said here: in the gateway these would only show as a process that ends again and again.
    if config.inference.tcp:
        parse_address(config.inference.tcp)
    if config.inference.grpc:
        parse_address(config.inference.grpc)
        _need_grpc()
    if len(os.fsencode(config.run / "control.sock")) > SOCKET_PATH_BYTES:
        raise InvalidInputError(
            f"{config.run} is too long a path for the sockets in it.",
            code="configuration",
            hint="Give a run_dir with a shorter path, under /run for example.",
        )
    return config


def _need_grpc() -> None:
    if find_spec("grpc") is None:
        raise InvalidInputError(
            "inference.grpc is set, and gRPC is not installed.",
            code="configuration",
            hint="Install the agent's extra edgefleet-agent[grpc].",
        )
