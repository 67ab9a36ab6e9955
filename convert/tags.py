"""Downloads CLIP weights by OpenCLIP's pretrained tags."""

import logging
import pathlib
import textwrap
from typing import NamedTuple

from fcclip_jax import command_line


class Pretrained(NamedTuple):
    """A tag's weights on the disk."""

    path: pathlib.Path
    quick_gelu: bool
    """True if they were trained with QuickGELU."""


def download(model: str, tag: str) -> Pretrained:
    """Returns the weights that OpenCLIP calls `tag`, from its cache or the network.

    Raises:
        ValueError: OpenCLIP is not installed, or has no such model or tag.
        OSError: the weights cannot be downloaded.
    """
    open_clip = command_line.import_package("open_clip", f"{tag}, which is not a file but a tag of OpenCLIP,")
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(f"{tag} is neither a file nor an OpenCLIP tag of {model}; its tags are: {known}")
    # The hub's client warns about each of its many attempts; the last error is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        path = open_clip.download_pretrained(config)
    # The network, the hub's client and its cache raise errors of different types.
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        raise OSError(
            f"the OpenCLIP weights {tag} of {model} cannot be downloaded ({reason}); check the network, or download"
            " the file on another machine and give its path"
        ) from error
    return Pretrained(pathlib.Path(path), tag == "openai" or config.get("quick_gelu", False))
