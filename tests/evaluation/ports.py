"""Free TCP ports for tests with several processes."""

import socket


def free_port() -> int:
    """Returns a port that no process listens on now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
