"""`fcclip demo` that deletes uploads after seconds instead of minutes, and prints every address outside that it connects to."""

import socket
import sys
from collections.abc import Callable
from typing import Any

from fcclip_jax import cli
from fcclip_jax.demo import serving

KEEP = 10
"""Seconds: longer than an answer takes on a busy machine."""

_serve, _connect = serving.serve, socket.socket.connect


def serve(build: Callable[[], Any], **where: Any) -> None:
    # Imported here because Gradio must not be before the folder of uploads is known.
    from fcclip_jax.demo import page

    page.CHECK_EVERY, page.KEEP_UPLOADS = 1, KEEP
    _serve(build, **where)


def connect(self: socket.socket, address: Any) -> None:
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        print(f"connects to {address}", flush=True)
    _connect(self, address)


if __name__ == "__main__":
    serving.serve, socket.socket.connect = serve, connect
    sys.exit(cli.main(["demo", *sys.argv[1:]]))
