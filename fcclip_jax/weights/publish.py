"""Uploads a converted checkpoint to the Hugging Face hub."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from fcclip_jax import checkpoint
from fcclip_jax.command_line import one_line
from fcclip_jax.models.descriptions import ModelDescription
from fcclip_jax.weights import hub, locate, model_card
from fcclip_jax.weights.model_card import Figures

CARD = "README.md"


class Upload(NamedTuple):
    """What goes to the hub."""

    repository: str
    files: dict[str, pathlib.Path]
    """By their paths in the repository."""
    card: str


def prepare(path: str | os.PathLike[str], repository: str, *, licence: str, figures: Sequence[Figures] = ()) -> Upload:
    """Verifies a checkpoint and writes its card; uploads nothing.

    path: a checkpoint's folder on a local disk, or a name or an address that `locate.find` takes.
    repository: OWNER/NAME.
    licence, figures: see `model_card.model_card`.

    Raises:
        FileNotFoundError: the folder is not a checkpoint.
        ValueError: the checkpoint is damaged, contains a CLIP alone or is on a remote storage, or an argument is malformed.
        OSError: as `locate.find`.
    """
    if not hub.is_repository(repository):
        raise ValueError(
            f"{repository} is not the name of a repository; write OWNER/NAME, such as me/fcclip-convnext-large"
        )
    licence = model_card.check_licence(licence)
    found = locate.find(path, whole=True)
    if "://" in os.fspath(found):
        raise ValueError(f"{path} is not on a local disk; copy it to one first")
    contents = checkpoint.read(found)
    if not isinstance(contents.description, ModelDescription):
        raise ValueError(
            f"{path} contains a CLIP alone, which cannot segment; combine it with an FC-CLIP checkpoint first"
        )
    folder = pathlib.Path(found)
    paths = [file for pattern in ("fcclip.json", "params/**/*") for file in folder.glob(pattern) if file.is_file()]
    files = {file.relative_to(folder).as_posix(): file for file in sorted(paths)}
    size = sum(file.stat().st_size for file in files.values())
    verified = checkpoint.has_checksums(found)
    card = model_card.model_card(contents, repository, size, verified=verified, licence=licence, figures=figures)
    return Upload(repository, files, card)


def push(upload: Upload, *, private: bool = False, revision: str | None = None, message: str | None = None) -> str:
    """Uploads in one commit, which replaces an earlier checkpoint of the repository; returns the commit's address.

    The repository and the branch are created if there are none.

    private: whether a new repository is private.
    revision: a branch; None is main.
    message: of the commit.

    Raises:
        ValueError: huggingface_hub is not installed, or no token of the hub is stored, or it refuses the card.
        OSError: the upload fails.
    """
    address = hub.parse(f"{hub.SCHEME}{upload.repository}" + (f"@{revision}" if revision is not None else ""))
    client = hub.import_client("uploading")
    if client.get_token() is None:
        raise ValueError("uploading needs a token of the hub; log in with `hf auth login`, or set HF_TOKEN")
    api = client.HfApi()
    try:
        api.create_repo(upload.repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(upload.repository, branch=revision, exist_ok=True)
        # The names of orbax's files differ each time.
        old = [name for name in api.list_repo_files(upload.repository, revision=revision) if name.startswith("params/")]
        add, delete = client.CommitOperationAdd, client.CommitOperationDelete
        done = api.create_commit(
            upload.repository,
            operations=[
                add(CARD, upload.card.encode()),
                *(add(name, file) for name, file in upload.files.items()),
                *(delete(name) for name in old if name not in upload.files),
            ],
            commit_message=message or "Upload a checkpoint of fcclip_jax",
            revision=revision,
        )
    # The network and the client raise errors of different types.
    except Exception as error:
        if type(error) is ValueError:  # the client's own, about the card
            raise ValueError(f"the hub refuses {upload.repository}: {one_line(error)}") from error
        raise hub.explained(error, address, f"{upload.repository} cannot be uploaded") from error
    return done.commit_url
