"""Images for training and validation: data sets by name, and loaders that are functions of (seed, epoch)."""

from n2n_cli.data.datasets import AUGMENTS, LOOKS, NAMES, load
from n2n_cli.data.loaders import EvalLoader, TrainLoader
from n2n_cli.data.selection import Dataset
from n2n_cli.data.sources import Source

__all__ = ["AUGMENTS", "LOOKS", "NAMES", "Dataset", "EvalLoader", "Source", "TrainLoader", "load"]
