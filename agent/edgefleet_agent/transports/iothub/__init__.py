"""Azure IoT Hub as a transport. Needs the extra `iothub`; only `compose.py` imports it."""
