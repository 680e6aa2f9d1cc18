"""``n2n data check``: every file of an image folder decoded once, before a run of days meets it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from n2n_cli.commands import machine
from n2n_cli.data import check
from n2n_cli.errors import N2NError
from n2n_cli.schema import DataCheck

SHOWN = 5  # files of a kind


def run(cfg: DataCheck) -> None:
    """Raises N2NError where files cannot be read or classes are missing, once all is told; KeyboardInterrupt, and the
    same command goes on from there."""
    workers = machine.workers(cfg.workers, 1, in_memory=False)

    def watch(files: Iterable[check.File], n: int) -> Iterable[check.File]:
        return bar(cfg.progress, iterable=files, total=n, unit="file", desc="data check")

    try:
        report = check.check(Path(cfg.root), workers, watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from there") from None
    if cfg.json:
        print(json.dumps({"root": cfg.root, **asdict(report)}), flush=True)
    else:
        for line in lines(report):  # a file's name may hold anything
            print(line.replace("\n", "\\n").encode("utf-8", "backslashreplace").decode(), flush=True)
    problems = [f"{len(report.unreadable)} files cannot be read"] if report.unreadable else []
    problems += [f"{part}/ lacks {len(names)} classes" for part, names in report.missing.items() if names]
    if problems:
        raise N2NError(f"data check: {cfg.root}: {', '.join(problems)}")


def lines(report: check.Report) -> list[str]:
    """The report for people."""
    said = []
    for part, count in report.images.items():
        sizes = sorted(report.classes[part].values())
        each = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
        said.append(f"{part}/: {count:,} images of {len(sizes):,} classes, {each} a class")
        over = [f"{report.hidden[part]:,} hidden"] if report.hidden[part] else []
        over += [f"{number:,} {suffix or 'without a suffix'}" for suffix, number in report.others[part].items()]
        said += [f"  passed over: {', '.join(over)}"] if over else []
        said += [f"  no class {_few(report.missing[part])}"] if report.missing[part] else []
    said += [f"cannot be read: {name}: {why}" for name, why in report.unreadable.items()]
    said += [f"{what}: {_few(names)}" for what, names in sorted(report.odd.items())]
    twice = [names for names in report.duplicates if names not in report.leaks]
    for what, groups in (("the same image in train/ and val/", report.leaks), ("the same image twice", twice)):
        if groups:
            said.append(f"{what}: {len(groups):,} times, such as {' = '.join(groups[0][:3])}")
    return said if any((report.unreadable, report.odd, report.duplicates)) else [*said, "every file can be read"]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def bar(progress: bool | None, **words: Any) -> Any:
    """tqdm with the time left, on a terminal alone unless ``progress`` says; ``words`` go to it."""
    from tqdm import tqdm

    return tqdm(**words, dynamic_ncols=True, disable=None if progress is None else not progress)


def counted(counts: Iterable[int], progress: bool | None, **words: Any) -> Iterator[int]:
    """``counts``, each added to a `bar`."""
    with bar(progress, **words) as shown:
        for count in counts:
            shown.update(count)
            yield count
