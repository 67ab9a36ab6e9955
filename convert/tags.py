"""OpenCLIP's pretrained tags, downloaded through its own list."""

import logging
import pathlib
import textwrap
from typing import NamedTuple


class Pretrained(NamedTuple):
    """A tag's weights on the disk."""

    path: pathlib.Path
    quick_gelu: bool
    """Whether they were trained with it."""


def download(model: str, tag: str) -> Pretrained:
    """The weights that OpenCLIP calls `tag`, from its cache or the network.

    Raises:
        ValueError: OpenCLIP is not installed, or knows no such model or tag.
        OSError: they cannot be downloaded.
    """
    try:
        import open_clip
    except ImportError:
        raise ValueError(
            f"there is no file {tag}, and OpenCLIP's tags need its package: pip install open_clip_torch"
        ) from None
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(f"there is no file {tag}, and OpenCLIP has no such weights of {model}; its tags are: {known}")
    # The hub's client warns of each of its many attempts; the last error says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        path = open_clip.download_pretrained(config)
    # The network, the hub's client and its cache each fail in a type of their own.
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 120, placeholder=" ...")
        raise OSError(
            f"the OpenCLIP weights {tag} of {model} cannot be downloaded ({reason}); check the network, or download"
            " the file elsewhere and give its path"
        ) from error
    return Pretrained(pathlib.Path(path), tag == "openai" or config.get("quick_gelu", False))
