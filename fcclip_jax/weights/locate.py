"""A name or a path to the directory of a checkpoint."""

import os
import pathlib
import shutil

from etils import epath

from fcclip_jax import checkpoint
from fcclip_jax.weights import arrival, fetch, hub, store, table
from fcclip_jax.weights.table import Drive, Entry


def find(name_or_path: str | os.PathLike[str], *, whole: bool = False) -> epath.Path:
    """Returns the directory of a checkpoint: of a path that exists, or else of weights by their name, fetched when needed.

    name_or_path: may be hf://OWNER/NAME or hf://OWNER/NAME@REVISION, a converted checkpoint on the Hugging Face hub.
    whole: whether only a whole FC-CLIP serves; the name of a CLIP alone is then refused before anything is downloaded.

    Raises:
        FileNotFoundError: there is no such path, and the name is close to the name of published weights.
        ValueError, OSError: as `checkpoint.find`; or the weights cannot be fetched or converted.
    """
    if hub.is_url(name_or_path):
        return hub.fetch_checkpoint(os.fspath(name_or_path))
    folder, name = checkpoint.find(name_or_path), os.fspath(name_or_path)
    if folder.exists():
        return folder
    if name in table.entries():
        if whole and table.entry(name).kind == "clip":
            raise ValueError(
                f"{name} is a CLIP alone, without FC-CLIP's head, so it cannot segment; choose other weights from"
                f" `fcclip weights`, or train a head with --config.init={name}"
            )
        return get(name)
    if hint := table.did_you_mean(name):
        raise FileNotFoundError(
            f"the checkpoint {folder} does not exist{hint}; `fcclip weights` lists the names of weights"
        )
    return folder


def get(
    name: str, *, file: pathlib.Path | None = None, keep_download: bool = False, overwrite: bool = False
) -> epath.Path:
    """Returns the directory of published weights; fetches, verifies and converts them if they are not here.

    file: the weights' file, downloaded by hand.
    keep_download: keeps what was downloaded from Google Drive. The hub's client keeps its downloads in any case.
    overwrite: converts again.

    Raises:
        FileExistsError: `file` is given, and the weights are here already.
        ValueError: the table has no such name, a package is missing, the file is not the right one, or does not convert.
        OSError: the file cannot be downloaded, or the cache folder cannot be written.
    """
    entry = table.entry(name)
    if entry.source is None:
        if file is not None:
            raise ValueError(f"{name} is inside this package and is not converted from a file; remove --file {file}")
        return checkpoint.find(name)
    if _is_here(name, file, overwrite=overwrite):
        return epath.Path(store.folder(name))
    with store.one_process_at_once(name, fetch.manual(entry) if file is None else "convert it with `fcclip-convert`"):
        # Another process may have brought them in the meantime.
        if not _is_here(name, file, overwrite=overwrite):
            for remains in store.root().glob(f".{name}.*.tmp"):  # of a conversion that was killed
                shutil.rmtree(remains)
            if file is not None:
                _arrive(entry, file.expanduser(), overwrite=overwrite)
            else:
                path = fetch.fetch(entry)
                _arrive(entry, path, overwrite=overwrite, downloaded=True)
                if isinstance(entry.source, Drive) and not keep_download:
                    shutil.rmtree(path.parent)
    return epath.Path(store.folder(name))


def _is_here(name: str, file: pathlib.Path | None, *, overwrite: bool) -> bool:
    """Returns whether converted weights are here and serve; a file that was given needs their place."""
    folder = store.folder(name)
    if overwrite or not folder.exists():
        return False
    if file is not None:
        raise FileExistsError(f"{name} is here already, in {folder}; convert {file} in its place with --overwrite")
    return True


def _arrive(entry: Entry, path: pathlib.Path, *, overwrite: bool, downloaded: bool = False) -> None:
    sha256 = _verified(entry, path, downloaded=downloaded)
    clip = None if entry.clip is None else _clip(table.entry(entry.clip))
    try:
        arrival.convert(entry, path, clip, overwrite=overwrite)
    except ValueError as error:
        if downloaded and entry.sha256 is None:
            # Nothing shows whether the file is damaged, or something else is wrong, such as a full disk.
            raise ValueError(f"{error}; the download is kept: delete {path} to repeat it") from None
        raise
    known = entry.sha256_from
    if known is None and store.read_record(entry.name):
        known = "as at its first use"
    elif known is None:
        known = "recorded now, to compare later files with"
        store.write_record(entry.name, sha256)
    store.say(f"{entry.name} is ready in {store.folder(entry.name)} (sha256 {sha256}, {known})")


def _verified(entry: Entry, path: pathlib.Path, *, downloaded: bool) -> str:
    try:
        return arrival.verify(entry, path)
    except ValueError:
        if downloaded:
            # Otherwise the next attempt would find it again. The hub's cache has links to files.
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise


def _clip(entry: Entry) -> pathlib.Path:
    """Returns the CLIP that heads alone need: the converted checkpoint if it is here, or else its file."""
    if store.folder(entry.name).exists():
        return store.folder(entry.name)
    with store.one_process_at_once(entry.name, fetch.manual(entry)):
        path = fetch.fetch(entry)
        _verified(entry, path, downloaded=True)
    return path
