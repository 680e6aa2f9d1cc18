"""Names of our own networks; importable without torch, so that a config can be checked quickly."""

from __future__ import annotations

from collections.abc import Mapping

OURS: tuple[str, ...] = ("inception_bn", "inception_rect", "inception_bn_tiny", "inception_rect_tiny")
"""The families of this project, the full members first."""

STEMS: tuple[str, ...] = ("imagenet", "small")
PAIRS_AT: tuple[str, ...] = ("branch", "concat")
FAMILY_KWARGS: tuple[str, ...] = ("extra_pairs", "pairs_at", "stem", "dropout")
"""What `build` takes for our own networks beside ``num_classes`` and ``width``."""

WIDTH_MULT: tuple[str, ...] = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
"""torchvision builders that take a ``width_mult`` of their own (a test checks the list)."""

SMALL_VITS: Mapping[str, Mapping[str, int]] = {
    "vit_ti_16": {"patch_size": 16, "num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768},
    "vit_s_16": {"patch_size": 16, "num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536},
}
"""Vision transformers that torchvision has the class of and no builder for (Touvron et al. 2021, table 1): a quarter
and half as wide as ``vit_b_16``, so that a factor of 4 or 2 makes that one of them."""
