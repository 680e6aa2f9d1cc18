"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Reports but for their pictures, which take seconds each; tests/studies and `test_commands` draw them."""
    from n2n_cli.studies import inline, style

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "png", lambda figure, **kwargs: b"")
        for module in (style, inline):
            patch.setattr(module, "svg", lambda figure, fonts="path": b'<svg viewBox="0 0 1 1"></svg>')
        yield
