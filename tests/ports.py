"""Ports for tests that run several processes."""

import socket


def free_address() -> str:
    """Returns HOST:PORT of a port that is free now, for the coordinator of JAX's processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"
