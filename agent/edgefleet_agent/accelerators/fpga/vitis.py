"""Options of onnxruntime's VitisAI provider, which runs models on a DPU.

Its compiled form takes minutes to make and belongs into the preparation cache: the proving worker
compiles, the serving worker finds the cache by its key. Paths come from the device's configuration
alone, through the environment of the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CONFIG: Final = "VITISAI_EP_JSON_CONFIG"
CACHE: Final = "XLNX_CACHE_DIR"


def environment(config: str, cache: str) -> dict[str, str]:
    """Return the variables by which workers learn of the configuration; none without one."""
    if not config:
        return {}
    return {CONFIG: config, CACHE: cache, "XLNX_ENABLE_CACHE": "1"}


def provider_options(digest: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the provider's options for a package; the cache is bound to its digest."""
    options: dict[str, str] = {}
    if config := environ.get(CONFIG):
        options["config_file"] = config
    if cache := environ.get(CACHE):
        options |= {"cacheDir": cache, "cacheKey": digest.removeprefix("sha256:")}
    return options
