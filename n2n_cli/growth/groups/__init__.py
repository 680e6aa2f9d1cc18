"""Room 2, group: which axes of which tensors must grow together, and what such groups owe each other."""
