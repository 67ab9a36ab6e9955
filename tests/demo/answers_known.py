"""A shipped scene and its words."""

import pathlib

PICTURES = pathlib.Path(__file__).parents[2] / "fcclip_jax" / "world" / "pictures"
SNOW_WORDS = "snow, mailbox, butterfly, saw, doughnut, sunglasses"
SNOW_STUFF = "snow"
