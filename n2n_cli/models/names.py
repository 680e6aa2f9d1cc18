"""Names of our own networks; importable without torch, so that a config can be checked quickly."""

from __future__ import annotations

OURS: tuple[str, ...] = ("inception_bn", "inception_rect", "inception_bn_tiny", "inception_rect_tiny")
"""The families of this project, the full members first."""

STEMS: tuple[str, ...] = ("imagenet", "small")
PAIRS_AT: tuple[str, ...] = ("branch", "concat")
FAMILY_KWARGS: tuple[str, ...] = ("extra_pairs", "pairs_at", "stem", "dropout")
"""What `build` takes for our own networks beside ``num_classes`` and ``width``."""

WIDTH_MULT: tuple[str, ...] = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
"""torchvision builders that take a ``width_mult`` of their own (a test checks the list)."""
