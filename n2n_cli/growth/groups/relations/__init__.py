"""What groups owe each other beyond one remapping. Taking a class out of ``RELATIONS`` costs its feature, nothing
else."""

from n2n_cli.growth.groups.relations.heads import HeadWidths
from n2n_cli.growth.groups.relations.lengths import EqualLengths, Widths
from n2n_cli.growth.groups.relations.norms import RelaxedNorms
from n2n_cli.growth.groups.relations.shuffles import Shuffles
from n2n_cli.growth.groups.relations.ties import Ties
from n2n_cli.growth.groups.structure import Relation

RELATIONS: list[type[Relation]] = [EqualLengths, Ties, Widths, Shuffles, RelaxedNorms, HeadWidths]
"""In the order in which they change sizes, draw remappings and refine them."""
