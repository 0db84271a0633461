"""What the double refuses, with the status and the code that Azure gives it."""

from __future__ import annotations


class HubError(Exception):
    """A request that the hub refuses.

    Attributes:
        status: As in HTTP, and as in a twin's answer over MQTT.
        code: Azure's name of the error, such as `DeviceNotFound`.
        retry_after: Seconds after which it may go; None if waiting does not help.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(f"ErrorCode:{code};{message}")
        self.status = status
        self.code = code
        self.retry_after = retry_after


def bad(message: str, code: str = "ArgumentInvalid") -> HubError:
    """Return the refusal of a request that is wrong by itself."""
    return HubError(400, code, message)


def not_found(device: str, module: str = "") -> HubError:
    """Return the refusal for an identity that the registry does not hold."""
    if module:
        return HubError(404, "ModuleNotFound", f"Module {module} of device {device} not found.")
    return HubError(404, "DeviceNotFound", f"Device {device} not registered.")


def not_online(device: str) -> HubError:
    """Return the refusal of a method for a device that is not connected."""
    return HubError(404, "DeviceNotOnline", f"Device {device} is not online.")


def precondition() -> HubError:
    """Return the refusal of a change whose If-Match is not the present etag."""
    return HubError(412, "PreconditionFailed", "Precondition failed: the etag has changed.")
