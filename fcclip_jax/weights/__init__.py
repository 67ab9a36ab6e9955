"""Published weights by name: a table of what exists, fetched, verified and converted when a name is first used.

table.py         what exists: weights.json
store.py         where converted checkpoints and downloads are kept
fetch.py         downloads from the Hugging Face hub and from Google Drive
arrival.py       verifies a file and converts it
locate.py        a name, a path or hf://OWNER/NAME to the checkpoint's directory
hub.py           converted checkpoints on the Hugging Face hub
publish.py       uploads them
model_card.py    the page that describes one there
"""

from fcclip_jax.weights.locate import find, get

__all__ = ["find", "get"]
