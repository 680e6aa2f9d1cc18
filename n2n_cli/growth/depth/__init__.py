"""Depth: where new layers fit, and how they start so that they change nothing (paper, section 2.4)."""
