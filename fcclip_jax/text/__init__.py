"""From class names to numbers: vocabularies, CLIP's tokenizer for their prompts, and the classifier."""
