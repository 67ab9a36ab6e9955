"""Words in, numbers out: the vocabularies of class names, and CLIP's tokenizer for their prompts."""
