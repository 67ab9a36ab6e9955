"""Downloads weight files with the services' own clients; every error says how to get the file by hand."""

import errno
import logging
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable

from fcclip_jax import command_line, files
from fcclip_jax.weights import store
from fcclip_jax.weights.table import Drive, Entry, Hub

DRIVE = "FCCLIP_JAX_DRIVE"
"""The environment variable with the address of a mirror that answers ADDRESS/uc?id=ID as Google Drive does."""
GOOGLE = "https://drive.google.com"
OFFLINE = "HF_HUB_OFFLINE"


def manual(entry: Entry) -> str:
    """Returns how to get a file without this module, as the end of a sentence."""
    assert entry.source is not None
    return f"download it in a browser from {entry.source.page} and run `fcclip weights get {entry.name} --file FILE`"


def fetch(entry: Entry) -> pathlib.Path:
    """Returns an entry's file, downloaded unless it is here already. An interrupted download resumes.

    Raises:
        ValueError: the service's client is not installed.
        OSError: the file cannot be downloaded, or does not fit on the disk.
    """
    assert entry.source is not None
    if isinstance(entry.source, Hub):
        return _from_hub(entry, entry.source)
    return _from_drive(entry, entry.source)


def in_units(size: int) -> str:
    """Writes a number of bytes in MB or GB, as the services do."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _announce(entry: Entry, host: str, size: int | None) -> None:
    amount = "size unknown" if size is None else in_units(size)
    store.say(f"downloading {entry.name}: {entry.file}, {amount}, from {host}; licence: {entry.licence}")


def _from_hub(entry: Entry, source: Hub) -> pathlib.Path:
    command_line.import_package("huggingface_hub", f"downloading {entry.name}", manual(entry))
    import huggingface_hub
    from huggingface_hub import constants

    cached = huggingface_hub.try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    if isinstance(cached, str):
        return pathlib.Path(cached)
    # The client warns about each of its attempts; the last error is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    endpoint = constants.ENDPOINT
    folder = pathlib.Path(constants.HF_HUB_CACHE)
    try:
        url = huggingface_hub.hf_hub_url(source.repository, source.file, revision=source.revision)
        size = huggingface_hub.get_hf_file_metadata(url).size
        _announce(entry, endpoint, size or entry.size)
        _check_space(folder, size or entry.size or 0)
        path = huggingface_hub.hf_hub_download(source.repository, source.file, revision=source.revision)
    # The network, the client and its cache raise errors of different types.
    except Exception as error:
        raise _explained(entry, error, endpoint, f"{folder} (another folder: HF_HOME)") from error
    return pathlib.Path(path)


def _from_drive(entry: Entry, source: Drive) -> pathlib.Path:
    folder = store.downloads(entry.name)
    path = folder / entry.file
    if path.exists():
        return path
    gdown = command_line.import_package("gdown", f"downloading {entry.name}", manual(entry))
    if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _offline(entry)
    host = os.environ.get(DRIVE, GOOGLE).rstrip("/")
    _announce(entry, host, entry.size)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _check_space(folder, entry.size or 0)
        gdown.download(
            url=_drive_url(host, source.id),
            output=str(path),
            # The client's lines and its bar are for people who watch.
            quiet=not sys.stderr.isatty(),
            # Public files need none, and the client would store them in the user's home folder.
            use_cookies=False,
            resume=True,
            retries=3,
            timeout=60,
            progress=_space_checker(folder),
        )
    except Exception as error:
        raise _explained(entry, error, host, f"{folder} (another folder: FCCLIP_JAX_CACHE)") from error
    return path


def _drive_url(host: str, id: str) -> str:
    """Returns the URL to download from. The client follows Drive's page "can't scan for viruses" on Google's own hosts only, so
    that a mirror's is followed here.
    """
    url = f"{host}/uc?id={id}"
    if host == GOOGLE:
        return url
    import requests
    from gdown.download import get_url_from_gdrive_confirmation

    # Of the file itself, if that is the answer, one byte is enough.
    with requests.get(url, headers={"Range": "bytes=0-0"}, stream=True, timeout=60) as response:
        response.raise_for_status()
        if not response.headers.get("Content-Type", "").startswith("text/html"):
            return url
        return get_url_from_gdrive_confirmation(response.text)


def _check_space(folder: pathlib.Path, size: int) -> None:
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        files.check_space(nearest, size)
    except OSError as error:
        raise OSError(errno.ENOSPC, command_line.one_line(error)) from None


def _space_checker(folder: pathlib.Path) -> Callable[[int, int | None], None]:
    """Returns a callback that checks, at the first piece, that the rest fits: only the server knows the size."""
    checked = False

    def check(done: int, total: int | None) -> None:
        nonlocal checked
        if not checked and total is not None:
            _check_space(folder, total - done)
        checked = True

    return check


def _offline(entry: Entry) -> OSError:
    return OSError(
        f"{entry.name} is not here yet, and {OFFLINE} forbids downloads; unset {OFFLINE}, or {manual(entry)}"
    )


def _explained(entry: Entry, error: Exception, host: str, folder: str) -> OSError:
    """Makes one sentence of a client's error."""
    by_hand = manual(entry)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "OfflineModeIsEnabled" in kinds:
        return _offline(entry)
    if isinstance(error, OSError) and error.errno in files.NO_SPACE:
        reason = error.strerror or "no space left"
        return OSError(
            f"{entry.file} does not fit into {folder}: {reason}; when there is space, repeat this, or {by_hand}"
        )
    if "FileURLRetrievalError" in kinds:
        return OSError(
            f"{host} sends a web page instead of {entry.file} ({_page_text(error)}); try again later, or {by_hand}"
        )
    if status == 404:
        return OSError(f"{host} has no {entry.file} any more (404); look for it at {entry.page}, or {by_hand}")
    if status in (401, 403):
        return OSError(f"{host} refuses access to {entry.file} ({status}); see {entry.page}, or {by_hand}")
    if status is not None:
        return OSError(f"{host} fails to send {entry.file} ({status}); try again later, or {by_hand}")
    # Connections that cannot be made at all are of this type too, with the client's own words.
    if "DownloadError" in kinds and not str(error).startswith("Download failed after"):
        reason = _short(command_line.first_line(error).rstrip("."))
        return OSError(
            f"the download of {entry.file} stopped early ({reason}); repeat this to resume it, delete"
            f" {store.downloads(entry.name)} to start over, or {by_hand}"
        )
    return OSError(f"{host} cannot be reached ({_innermost(error)}); check the network, or {by_hand}")


def _page_text(error: Exception) -> str:
    text = command_line.one_line(error)
    text = text.removeprefix("Failed to retrieve file url: ").split(" You may still be able")[0]
    return _short(text.split(" Check FAQ")[0].rstrip("."))


def _innermost(error: BaseException) -> str:
    """Returns the reason that the operating system gave, which clients wrap several times."""
    chain = command_line.causes(error)
    reasons = [part.strerror for part in chain if isinstance(part, OSError) and part.strerror]
    return _short(reasons[-1] if reasons else command_line.first_line(chain[-1]))


def _short(text: str) -> str:
    return textwrap.shorten(text, 160, placeholder=" ...")
