"""A double of Azure IoT Hub: hubs, their devices and their rules, on this machine.

It is for tests and for the demo. What it enforces is what Microsoft documents, so that a client
that breaks a rule is found out; what it cannot show is how Azure itself behaves under load.
"""
