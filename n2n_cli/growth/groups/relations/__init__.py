"""Relations: constraints between groups that one shared remapping cannot express.

Each stands alone: with its class taken out of ``RELATIONS``, what needs it stays fixed, and all else still grows.
"""

from n2n_cli.growth.groups.relations.heads import HeadWidths
from n2n_cli.growth.groups.relations.lengths import EqualLengths, Widths
from n2n_cli.growth.groups.relations.norms import RelaxedNorms
from n2n_cli.growth.groups.relations.places import PlacesInBuffers
from n2n_cli.growth.groups.relations.shuffles import Shuffles
from n2n_cli.growth.groups.relations.ties import Ties
from n2n_cli.growth.groups.relations.weight_norms import WeightNorms
from n2n_cli.growth.groups.structure import Relation

RELATIONS: list[type[Relation]] = [
    EqualLengths,
    Ties,
    Widths,
    Shuffles,
    RelaxedNorms,
    HeadWidths,
    WeightNorms,
    PlacesInBuffers,
]
"""In the order in which they change sizes, draw remappings and refine them."""
