"""The one exception a user's mistake may raise, and the spelling help that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class N2NError(Exception):
    """A mistake of the user's, told in one line: what is wrong, where, what was expected.

    The command line prints it as ``n2n: error: <message>`` and ends with exit code 2.
    """


class Everywhere(N2NError):
    """A mistake that every rank of a run tells at the same place."""


class RunError(N2NError):
    """This run cannot be made as it is asked for; others of its study can."""


class RankLost(N2NError):
    """A rank of a run ended from outside: a run that is started again goes on from its checkpoint."""


class Diverged(RunError):
    """A loss, a gradient or an output that is not finite: what the run holds from here on is worth nothing."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the choice nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.55)
    return f" (did you mean '{near[0]}'?)" if near else ""
