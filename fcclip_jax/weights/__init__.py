"""Published weights.

hub.py           loads converted checkpoints from the Hugging Face hub
publish.py       uploads them
model_card.py    the page that describes one there
"""
