"""The server of the page, and the folder of what visitors upload."""

import contextlib
import os
import pathlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

MOST_WAITING = 64
"""Visitors that wait for an answer; further ones are asked to come back."""
LARGEST_UPLOAD = "100mb"


def check_port(host: str, port: int) -> None:
    """Raises an OSError of one sentence if the address cannot be listened at."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        # The error's own text repeats the address. Numbers below 0 are of a host's name.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else "no such host"
        raise OSError(f"cannot listen at {host}:{port} ({reason}); choose another --port or --host") from None


@contextlib.contextmanager
def uploads() -> Iterator[pathlib.Path]:
    """Yields the folder for uploads, which is deleted at the end. Gradio must not be imported before."""
    with tempfile.TemporaryDirectory(prefix="fcclip_demo_", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield pathlib.Path(folder)


def serve(build: Callable[[], Any], *, host: str, port: int, share: bool) -> None:
    """Serves a page until Ctrl-C, and prints its address as soon as it answers.

    build: returns the gr.Blocks.
    """
    from fcclip_jax.demo.page import THEME

    page = build()
    page.queue(default_concurrency_limit=1, max_size=MOST_WAITING)
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            theme=THEME,
            ssr_mode=False,
            footer_links=[],
            max_file_size=LARGEST_UPLOAD,
        )
        print(f"ready at {public or local} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)
