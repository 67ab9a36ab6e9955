"""What happens to a weight file once it is here: verified before anything is read from it, then converted into the cache."""

import hashlib
import os
import pathlib
import re
import subprocess
import sys

from fcclip_jax import command_line
from fcclip_jax.weights import fetch, store
from fcclip_jax.weights.table import Entry

PACKAGE = pathlib.Path(__file__).parents[1]
WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?a-zA-Z][a-zA-Z-]")
"""How web pages begin. The length with which .safetensors files begin may contain a <, but no letters after it."""


def verify(entry: Entry, path: pathlib.Path) -> str:
    """Returns a file's sha256 after comparing it with the published one, or with the one recorded at first use.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: the file is a web page, or its checksum is another.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the file {entry.file} inside it")
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {path} does not exist; check the path")
    with path.open("rb") as file:
        # Browsers save the pages of a service under the name of the file that it did not send.
        if WEB_PAGE.match(file.read(512)):
            raise ValueError(f"{path} is a web page, not {entry.file}; {fetch.manual(entry)}")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if entry.sha256 is not None:
        if sha256 != entry.sha256:
            raise ValueError(
                f"{path} has the sha256 {sha256} instead of {entry.sha256} ({entry.sha256_from}), so it is damaged or another"
                f" file; repeat the download, or {fetch.manual(entry)}"
            )
        return sha256
    record = store.read_record(entry.name)
    if record is not None and sha256 != record.sha256:
        raise ValueError(
            f"{path} has the sha256 {sha256}, but {entry.name} had {record.sha256} when it was first used here, on"
            f" {record.date}; if its authors replaced the file, delete {store.record_of(entry.name)} and repeat this,"
            f" otherwise {fetch.manual(entry)}"
        )
    return sha256


def convert(entry: Entry, path: pathlib.Path, clip: pathlib.Path | None, *, overwrite: bool) -> None:
    """Converts a file to the checkpoint store.folder(entry.name), in a process of its own, whose memory is free afterwards.

    clip: the CLIP of weights that have none, a file or a checkpoint.

    Raises:
        ValueError: the file does not convert.
    """
    assert entry.source is not None
    command = ["openclip", "--pretrained", str(path)] if entry.kind == "clip" else ["fcclip", "--checkpoint", str(path)]
    command += ["--model", entry.model, "--source", f"{entry.file}, {entry.source.page}"]
    command += ["--quick-gelu" if entry.quick_gelu else "--no-quick-gelu"] * (not entry.model.endswith(".json"))
    if entry.vocabulary is not None:
        command += ["--vocabulary", entry.vocabulary]
    if clip is not None:
        command += ["--clip", str(clip)]
    command += ["--output", str(store.folder(entry.name))] + ["--overwrite"] * overwrite
    # On the CPU: another process may be using the accelerator, or this one.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    module = "fcclip_jax.convert"
    if (PACKAGE.parent / "convert" / "__main__.py").exists():  # a checkout, where convert is beside fcclip_jax
        module = "convert"
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    store.say(f"converting {entry.name}")
    # -P: a convert.py of the user's, in the working folder, must not run instead.
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *command], env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode == command_line.INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode != command_line.DONE:
        _, found, reason = f"\n{done.stderr}".partition("\nerror: ")
        if not found or done.returncode != command_line.REFUSED:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            reason = f"the conversion ended with exit code {done.returncode} ({last})"
        raise ValueError(f"{entry.name} does not convert: {reason.strip()}")
