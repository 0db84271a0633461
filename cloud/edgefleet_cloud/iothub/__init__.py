"""Azure IoT Hubs: their service API, their limits, and what is known of each device's twin."""
