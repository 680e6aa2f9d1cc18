"""n2n: growth studies after Chen, Goodfellow & Shlens, *Net2Net* (ICLR 2016)."""

__version__ = "0.1.0"
