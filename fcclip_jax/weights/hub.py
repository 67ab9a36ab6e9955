"""Converted checkpoints on the Hugging Face hub: hf://OWNER/NAME, and hf://OWNER/NAME@REVISION."""

import importlib
import os
import re
import types
from typing import Any, NamedTuple

from etils import epath

from fcclip_jax.command_line import causes, first_line, import_package, one_line
from fcclip_jax.files import NO_SPACE

SCHEME = "hf://"
FILES = ("fcclip.json", "params/*")
"""What a checkpoint consists of; * also matches files in folders."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")


class Address(NamedTuple):
    """The place of a checkpoint on the hub."""

    repository: str
    revision: str | None
    """A branch, a tag or a commit; None for the branch main."""


def is_url(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).startswith(SCHEME)


def parse(url: str) -> Address:
    """Splits hf://OWNER/NAME@REVISION.

    Raises:
        ValueError: the text has another form.
    """
    repository, at, revision = url.removeprefix(SCHEME).partition("@")
    if not url.startswith(SCHEME) or not is_repository(repository):
        raise ValueError(
            f"{url} does not name a checkpoint on the hub; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise ValueError(f"{url} has no valid revision after @; give a branch, a tag or a commit")
    return Address(repository, revision or None)


def is_repository(name: str) -> bool:
    """Returns whether a text is OWNER/NAME as the hub allows it."""
    return bool(_REPOSITORY.fullmatch(name)) and not any(part in name for part in ("--", "..")) and name[-4:] != ".git"


def fetch_checkpoint(url: str) -> epath.Path:
    """Returns the directory of a checkpoint on the hub, in the client's cache; downloads what is not there yet.

    The client reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. If the hub cannot be reached, the last download of
    this revision serves.

    Raises:
        ValueError: the URL is malformed, or huggingface_hub is not installed.
        FileNotFoundError: there is no such repository or revision, or it is no checkpoint.
        OSError: the download fails.
    """
    address = parse(url)
    client = import_client(f"loading {url}")
    try:
        folder = client.snapshot_download(address.repository, revision=address.revision, allow_patterns=list(FILES))
    # The network, the client and its cache raise errors of different types.
    except Exception as error:
        raise explained(error, address, f"{url} cannot be downloaded") from error
    path = epath.Path(folder)
    if not (path / FILES[0]).exists():
        raise FileNotFoundError(f"{url} is not a checkpoint of fcclip_jax: the repository has no {FILES[0]}")
    return path


def import_client(purpose: str) -> types.ModuleType:
    """Imports huggingface_hub.

    Raises:
        ValueError: it is not installed.
    """
    return import_package("huggingface_hub", purpose)


def explained(error: Exception, address: Address, failure: str) -> OSError:
    """Makes one sentence of the client's error.

    failure: what has failed, as the start of a sentence.
    """
    constants: Any = importlib.import_module("huggingface_hub.constants")
    host, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    repository, revision = address.repository, address.revision or "main"
    chain: list[Any] = causes(error)
    kinds = {kind.__name__ for part in chain for kind in type(part).__mro__}
    statuses = [part.response.status_code for part in chain if getattr(part, "response", None) is not None]
    full = [part for part in chain if isinstance(part, OSError) and part.errno in NO_SPACE]
    if full:
        return OSError(f"{failure}: {full[0].strerror} in {cache}; free some space, or choose another folder (HF_HOME)")
    if "OfflineModeIsEnabled" in kinds:
        return OSError(f"{failure}: it is not in {cache}, and HF_HUB_OFFLINE forbids connections; unset HF_HUB_OFFLINE")
    if "GatedRepoError" in kinds:
        return OSError(
            f"{failure}: access to {repository} is granted on request; ask for it at {host}/{repository}, and log in with"
            " `hf auth login`"
        )
    if "RevisionNotFoundError" in kinds:
        return FileNotFoundError(
            f"{failure}: {repository} has no revision {revision}; its branches and tags are listed at {host}/{repository}/tree/main"
        )
    # The client calls every 401 that is no refused token a repository that is not found.
    if "RepositoryNotFoundError" not in kinds and 401 in statuses:
        return OSError(
            f"{failure}: {host} rejects your token; log in with a valid one, `hf auth login`, and unset HF_TOKEN if that has"
            " an old one"
        )
    # The hub answers 401 for what may exist, but not for this user.
    if "RepositoryNotFoundError" in kinds:
        return FileNotFoundError(
            f"{failure}: {host} has no repository {repository} that you may read; check the name, or log in with `hf auth"
            " login` if it is private"
        )
    if 403 in statuses:
        return OSError(
            f"{failure}: your token gives no access to {repository}; log in with another one: `hf auth login`"
        )
    if statuses:
        reason = getattr(chain[0], "server_message", None) or first_line(chain[0])
        return OSError(f"{failure}: {host} answers {statuses[0]} ({reason}); try again later")
    # The innermost error has the reason that the operating system gave.
    reason = one_line(chain[-1])
    if kinds & {"TransportError", "ConnectionError"}:
        return OSError(f"{failure}: {host} cannot be reached ({reason}); check the network, then try again")
    return OSError(f"{failure}: {type(chain[-1]).__name__}, {reason}")
