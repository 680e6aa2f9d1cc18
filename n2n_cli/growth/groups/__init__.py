"""Room 2, group: which axes of which tensors must grow together, and which constraints bind their groups."""
