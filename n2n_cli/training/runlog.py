"""The log of a run: metrics.jsonl (the source of every report), TensorBoard events, and the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from n2n_cli import records
from n2n_cli.errors import N2NError

LINE_EVERY_S = 10.0
_EVENTS = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


class RunLog:
    """The log of one run folder; it does nothing on any rank but the main one.

    Args:
        folder: the run folder.
        start_step: step of the checkpoint that the run goes on from. Later rows are removed, as the run will write
            the same ones again; at step 0 all rows are.
        total_steps: optimizer steps of the whole run, for the bar.
        progress: True a tqdm bar, False nothing, None a bar on a terminal and plain lines elsewhere.
        main: whether this rank writes.
        hparams: plain values for TensorBoard's HParams page; the same keys in every run.

    Raises:
        N2NError: metrics.jsonl cannot be written (a full disk). TensorBoard's failures only warn, once.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        total_steps: int,
        progress: bool | None = None,
        main: bool = True,
        hparams: Mapping[str, Any] | None = None,
    ) -> None:
        self.main = main
        if not main:
            return
        self.folder = Path(folder)
        self.path = self.folder / "metrics.jsonl"
        self.total_steps = total_steps
        try:
            self._cut(start_step)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise N2NError(f"cannot write {self.path}: {error.strerror}") from error
        self._hook = threading.excepthook
        threading.excepthook = self._in_a_thread
        self._board = self._tensorboard(start_step, dict(hparams or {}))
        terminal = sys.stderr.isatty()
        self._waiting, self._warned = b"", False
        self._bar: Any = None
        self._lines = progress is None and not terminal
        self._shown: dict[str, float] = {}
        self._last_line = 0.0
        self._last_epoch = 0
        if progress or (progress is None and terminal):
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_steps, initial=start_step, desc=self.folder.name, unit="step", dynamic_ncols=True
            )

    def row(self, step: int, *, epoch: float, images: int, time_s: float, **values: float) -> None:
        """Write one row: ``values`` by tag, at optimizer step ``step``."""
        if not self.main:
            return
        row = {"step": step, "epoch": epoch, "images": images, "time_s": round(time_s, 4), **values}
        self._waiting += records.line(row)
        try:
            self._write()
        except OSError as error:  # the checkpoint will ask again, and be refused if there still is no room
            if not self._warned:
                print(
                    f"n2n: warning: cannot write {self.path}: {error.strerror}; it will be tried again",
                    file=sys.stderr,
                    flush=True,
                )
            self._warned = True
        if self._board is not None:
            try:
                for tag, value in values.items():
                    self._board.add_scalar(tag, value, step, walltime=self._began + time_s)
            except OSError as error:
                self._no_board(error)
        self._show(step, epoch, values)

    def advance(self, step: int) -> None:
        """Move the bar; cheap enough for every step."""
        if self.main and self._bar is not None:
            self._bar.update(step - self._bar.n)

    def sync(self) -> None:
        """Everything written so far reaches the disk: called before a checkpoint that counts on it."""
        if not self.main:
            return
        try:
            self._write()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise N2NError(f"cannot write {self.path}: {error.strerror}") from error
        if self._board is not None:
            try:
                self._board.flush()
            except OSError as error:
                self._no_board(error)

    def close(self) -> None:
        """Close all files; safe to call twice."""
        if not self.main:
            return
        if self._bar is not None:
            self._bar.close()
        with contextlib.suppress(OSError, ValueError):
            self._write()
        self._file.close()
        if self._board is not None:
            try:
                self._board.close()
            except OSError as error:
                self._no_board(error)
            self._board = None
        threading.excepthook = self._hook

    def _in_a_thread(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose error comes back with the next event: no traceback here."""
        if not (type(args.thread).__module__.startswith("tensorboard") and isinstance(args.exc_value, OSError)):
            self._hook(args)

    def _write(self) -> None:
        """The rows that wait, whole or not at all. Raises OSError."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(self._waiting)
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            raise
        self._waiting = b""
        self._warned = False

    def _cut(self, start_step: int) -> None:
        if not self.path.exists():
            return
        kept = [row for row in records.rows(self.path) if start_step > 0 and row["step"] <= start_step]
        new = b"".join(records.line(row) for row in kept)
        if new != self.path.read_bytes():
            records.atomic_write(self.path, new)

    def _tensorboard(self, start_step: int, hparams: dict[str, Any]) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams as hparams_summary

            # purge_step: TensorBoard forgets what a stopped run wrote behind its checkpoint.
            # The clock of the training alone, pauses left out: from when the first event file was begun.
            self._began = float(self._older_first())
            board = SummaryWriter(str(self.folder), purge_step=start_step + 1 if start_step else 0)
            if hparams:
                # add_hparams would make a time-stamped sub-run; the same three summaries belong to this one.
                for summary in hparams_summary(hparams, {"val/top1": 0.0, "val/loss": 0.0}):
                    board._get_file_writer().add_summary(summary)
            return board
        except OSError as error:
            self._no_board(error)
            return None

    def _older_first(self) -> int:
        """The second in which the first event file was begun (now, where there is none).

        TensorBoard reads event files in the order of their names, which begin with the second. A file that was begun
        within this second, or by a clock that was ahead of this one, gets a name before the new one's.
        """
        found = {path: _EVENTS.match(path.name) for path in self.folder.glob("events.out.tfevents.*")}
        begun = sorted((match[1], path) for path, match in found.items() if match)
        latest = int(time.time())
        for stamp, path in reversed(begun):
            if int(stamp) >= latest:
                path.rename(path.with_name(path.name.replace(stamp, f"{latest - 1:010d}", 1)))
            latest = min(int(stamp), latest - 1)
        return latest

    def _no_board(self, error: OSError) -> None:
        self._board = None
        reason = error.strerror or error
        print(
            f"n2n: warning: no more TensorBoard events in {self.folder}: {reason}",
            file=sys.stderr,
            flush=True,
        )

    def _show(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        if not {"train/loss", "val/top1"} & values.keys():  # what else was measured at the end: nothing new to show
            return
        self._shown.update(values)
        shown = []
        if "train/loss" in self._shown:
            shown.append(f"loss {self._shown['train/loss']:.3f}")
        if "val/top1" in self._shown:
            shown.append(f"val top-1 {100 * self._shown['val/top1']:.2f} %")
        if "perf/images_per_s" in self._shown:
            shown.append(f"{self._shown['perf/images_per_s']:.0f} images/s")
        if self._shown.get("perf/data_wait", 0.0) >= 0.01:
            shown.append(f"waits {100 * self._shown['perf/data_wait']:.0f} % for images")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
        elif self._lines:
            now = time.monotonic()
            new_epoch = int(epoch) > self._last_epoch and "val/top1" in values
            if step in (0, self.total_steps) or new_epoch or now - self._last_line >= LINE_EVERY_S:
                self._last_line, self._last_epoch = now, int(epoch)
                where = f"{self.folder.name}: step {step}/{self.total_steps}, epoch {epoch:.2f}"
                print(", ".join([where, *shown]), file=sys.stderr, flush=True)
