"""The arms of a growth study: their runs read back, their statistics, pictures and report.

A study is a folder with one run folder an arm and seed. Everything here is read from those folders
(``run.json``, ``metrics.jsonl``, ``done.json``, ``config.yaml``): a report can be written again at any time.
"""

from n2n_cli.studies.report import Paths, write
from n2n_cli.studies.runs import Run, collect
from n2n_cli.studies.statistics import ArmStatistics, RunStatistics, statistics
from n2n_cli.studies.table import failures, table_text

__all__ = ["ArmStatistics", "Paths", "Run", "RunStatistics", "collect", "failures", "statistics", "table_text", "write"]
