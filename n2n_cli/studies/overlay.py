"""TensorBoard's side of a study: the arms overlaid, and mean and spread over seeds, which TensorBoard lacks.

The run folders have identical tags and so share their charts by themselves. Beside them lie ``mean/<arm>``:
runs with the mean over an arm's finished seeds under the same tags, and its spread under
``spread/<tag>/mean|lower|upper`` (tags that only these runs have, for the charts with bands).
A custom-scalars layout pins the charts that matter.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from n2n_cli.studies.plots import mean_and_spread
from n2n_cli.studies.statistics import ArmStatistics

FOLDER = "mean"
TAGS = ("val/top1", "val/top5", "val/loss", "train/loss", "train/top1")
_SPREAD = ("val/top1", "train/loss")


def write(folder: Path, arms: Sequence[ArmStatistics]) -> Path:
    """Writes ``folder/mean`` anew: a run for each arm with two finished seeds or more, and the layout."""
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    averaged = [arm for arm in arms if arm.n > 1]
    layout = [_layout(bool(averaged))]  # in one run of all: TensorBoard merges the layouts it finds
    for arm in averaged:
        _write(target / arm.key, [*layout, *_aggregated(arm)])
        layout = []
    if layout:
        _write(target, layout)
    return target


def _aggregated(arm: ArmStatistics) -> list[Event]:
    """Mean and spread at the steps that all finished seeds have; wall time is the first seed's."""
    run = arm.runs[0].run
    start = (run.folder / "run.json").stat().st_mtime
    times = {int(row["step"]): float(row.get("time_s", 0.0)) for row in run.rows}
    events = []
    for tag in TAGS:
        for step, mean, sd in zip(*mean_and_spread([one.run.series(tag) for one in arm.runs]), strict=True):
            values = {tag: mean}
            if tag in _SPREAD:
                band = {"mean": mean, "lower": mean - sd, "upper": mean + sd}
                values |= {f"spread/{tag}/{name}": value for name, value in band.items()}
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
            events.append(Event(wall_time=start + times.get(step, 0.0), step=step, summary=summary))
    return sorted(events, key=lambda event: event.step)


def _layout(averaged: bool) -> Event:
    """All arms on one chart a tag; where there are several seeds, mean and standard deviation first."""
    chart, multiline = layout_pb2.Chart, layout_pb2.MultilineChartContent
    margin = layout_pb2.MarginChartContent
    bands = [
        chart(
            title=f"{tag}: mean and standard deviation",
            margin=margin(
                series=[
                    margin.Series(value=f"spread/{tag}/mean", lower=f"spread/{tag}/lower", upper=f"spread/{tag}/upper")
                ]
            ),
        )
        for tag in _SPREAD
    ]
    lines = [chart(title=tag, multiline=multiline(tag=[f"^{tag}$"])) for tag in (*TAGS, "lr")]
    categories = [layout_pb2.Category(title="Arms over seeds", chart=bands)] if averaged else []
    layout = layout_pb2.Layout(category=[*categories, layout_pb2.Category(title="Arms, every run", chart=lines)])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()])
    value = Summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=metadata)
    return Event(wall_time=time.time(), summary=Summary(value=[value]))


def _write(folder: Path, events: Sequence[Event]) -> None:
    writer = EventFileWriter(str(folder))
    for event in events:
        writer.add_event(event)
    writer.close()
