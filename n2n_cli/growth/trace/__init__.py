"""Room 1, trace: one forward pass of a model, written down as a list of operations."""
