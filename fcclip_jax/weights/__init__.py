"""Published weights by name: a table of what exists, fetched, verified and converted when a name is first used.

table.py      what exists: weights.json
store.py      where converted checkpoints and downloads are kept
fetch.py      downloads from the Hugging Face hub and from Google Drive
arrival.py    verifies a file and converts it
locate.py     a name or a path to the checkpoint's directory
"""

from fcclip_jax.weights.locate import find, get

__all__ = ["find", "get"]
