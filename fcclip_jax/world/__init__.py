"""The miniature world: emoji on procedural backgrounds, in which the whole task happens at the size of a toy."""
