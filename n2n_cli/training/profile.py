"""Where the time of a training step goes: a table and a trace of a few steps, by ``torch.profiler``."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, record_function, schedule
from torch.profiler import profile as torch_profile

from n2n_cli.records import atomic_write
from n2n_cli.training.options import PLAIN_STEPS, WARMUP_STEPS

PHASES = ("data wait", "transfer", "forward", "backward", "optimizer", "evaluation", "logging", "checkpoint")
_UNRECORDED = contextlib.nullcontext()


class StepProfile:
    """Profiles ``steps`` training steps, after `PLAIN_STEPS` and `WARMUP_STEPS` others.

    Then it prints the table, writes it to ``folder/profile.txt`` and the trace (for Chrome, Perfetto, TensorBoard) to
    ``folder/profile.json.gz``. A failure to write them only warns.

    Args:
        folder: the run folder.
        steps: to be profiled; 0: none.
        device: where the network is; on a GPU every recorded phase waits for it.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self._folder, self._steps, self._device = folder, steps, device
        self._ends: list[float] = []
        self._recording = False
        self._profiler: torch_profile | None = None
        if steps:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it complains, on stderr, of a machine without a GPU
            plan = schedule(wait=PLAIN_STEPS, warmup=WARMUP_STEPS, active=steps, repeat=1)
            self._profiler = torch_profile(schedule=plan, on_trace_ready=self._write)
            self._profiler.start()

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Marks a phase (of `PHASES`) of a step; free unless it is recorded, where a `record_function` takes 13 us."""
        if not self._recording:
            return _UNRECORDED
        return record_function(name) if self._device.type == "cpu" else self._waiting(name)

    def step(self) -> None:
        """A training step is over, with its evaluation and logging."""
        if self._profiler is None:
            return
        if len(self._ends) < PLAIN_STEPS:
            self._ends.append(time.perf_counter())
        self._profiler.step()
        if self._recording and self._profiler.current_action == ProfilerAction.NONE:
            self._end()
        else:
            self._recording = self._profiler.current_action != ProfilerAction.NONE

    def close(self) -> None:
        """The run is over; says so if that was too early for a profile."""
        if self._profiler is not None:
            self._profiler.on_trace_ready = None
            self._end()
            need = PLAIN_STEPS + WARMUP_STEPS + self._steps
            print(f"n2n: warning: no profile: it takes {need} steps without a stop", file=sys.stderr, flush=True)

    def _end(self) -> None:
        assert self._profiler is not None
        self._profiler.stop()
        self._profiler, self._recording = None, False

    @contextlib.contextmanager
    def _waiting(self, name: str) -> Iterator[None]:
        with record_function(name):
            yield
            torch.cuda.synchronize(self._device)

    def _write(self, profiler: torch_profile) -> None:
        times: dict[str, float] = {}
        for event in profiler.events() or ():
            name = "step" if event.name.startswith("ProfilerStep") else event.name
            if name in ("step", *PHASES) and event.device_type == torch.autograd.DeviceType.CPU:
                times[name] = times.get(name, 0.0) + event.cpu_time_total / 1e3 / self._steps
        plain = 1e3 * statistics.median(b - a for a, b in zip(self._ends, self._ends[1:], strict=False))
        text = table(times, plain, self._steps)
        print(text, end="", flush=True)
        try:
            atomic_write(self._folder / "profile.txt", text.encode())
            profiler.export_chrome_trace(str(self._folder / "profile.json.gz"))
        except (OSError, RuntimeError) as error:
            print(f"n2n: warning: cannot write the profile: {error}", file=sys.stderr, flush=True)


def table(times: dict[str, float], plain: float, steps: int) -> str:
    """The phases of a step, their time and share.

    Args:
        times: milliseconds of a step (``"step"``) and of the phases in it, with the profiler on; means over ``steps``.
        plain: milliseconds of a step without the profiler.
    """
    total = times["step"]
    rows = {name: times[name] for name in PHASES if name in times}
    rows["other"] = total - sum(rows.values())
    rows["together"] = total
    lines = [f"{name:<11}{value:>10.2f} ms{value / total:>8.1%}" for name, value in rows.items()]
    return "\n".join([f"a training step, mean of {steps}:", *lines, f"without the profiler: {plain:.2f} ms", ""])
