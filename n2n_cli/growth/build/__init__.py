"""Room 4, build: every parameter and buffer re-indexed, and the numbers of modules that must follow."""
