"""The arms of a growth study: their runs read back, their statistics, pictures and report.

A study is a folder with one run folder an arm and seed. Everything here is read from those folders
(``run.json``, ``metrics.jsonl``, ``done.json``, ``config.yaml``): a report can be written again at any time.
"""

from n2n_cli.studies.by_stage import text as stage_text
from n2n_cli.studies.collect import collect, ordered
from n2n_cli.studies.comparable import comparable, gather
from n2n_cli.studies.report import Paths, current, write
from n2n_cli.studies.runs import Run
from n2n_cli.studies.statistics import ArmStatistics, RunStatistics, statistics
from n2n_cli.studies.table import WIDTH, failures, table_text

__all__ = [
    "WIDTH",
    "ArmStatistics",
    "Paths",
    "Run",
    "RunStatistics",
    "collect",
    "comparable",
    "current",
    "failures",
    "gather",
    "ordered",
    "stage_text",
    "statistics",
    "table_text",
    "write",
]
