"""The gRPC door: a process of its own that speaks the protocol and asks the gateway.

gRPC and protobuf are parsers of somebody else's, written in C++: here they can fall over without
taking a route with them, and a device that does not open this door carries nothing of them.
"""
