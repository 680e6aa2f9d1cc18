"""Every refusal of this package is a GrowthError: one line that names the layer and the reason."""

from n2n_cli.errors import RunError


class GrowthError(RunError):
    """A growth that cannot be exact, or cannot be done, and why."""
