"""Start the ranks of one run: fresh interpreters under PyTorch's elastic agent.

Nothing is pickled and no command line is replayed: every rank is ``python -m module args...``, so the same
worker module also runs under plain ``torchrun`` or SLURM.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from n2n_cli.errors import N2NError, RankLost, RunError
from n2n_cli.processes import stop_with_parent

_LAUNCHED = "N2N_LAUNCHED"  # in the environment of ranks that `launch` started
_INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)
_SAVING_S = 600  # from a signal on, the ranks' evaluation or save included: elastic kills after 30 otherwise
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


class RankFailure(RuntimeError):
    """A rank ended by something that is no user's mistake; the message holds its traceback."""


def launch(module: str, args: list[str], devices: int, max_restarts: int = 0) -> None:
    """Run ``python -m module *args`` as ``devices`` ranks of this machine and wait for them.

    The module's main goes through `run_rank`. Signals reach the ranks, which save and stop.

    Args:
        max_restarts: how often all ranks are started anew, after one was killed or failed by no mistake of the user's.

    Raises:
        N2NError: what a rank raised, the same one line; RankLost: a rank was killed.
        RankFailure: a rank failed otherwise, with its traceback.
        KeyboardInterrupt: a signal (SIGINT, SIGTERM, ...) stopped the agent.
    """
    for restart in range(1, max_restarts + 1):
        try:
            return _launch(module, args, devices)
        except (RankLost, RankFailure) as error:
            lines = str(error).splitlines()
            print(f"n2n: warning: {lines[-1]}: restart {restart} of {max_restarts}", file=sys.stderr, flush=True)
    return _launch(module, args, devices)


def _launch(module: str, args: list[str], devices: int) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent tells on stderr, in several lines, what `_told` puts into one.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="n2n-ranks-") as logs, _own_signals(), _environment(devices):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",  # no look-up of the host's name
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *args)
        except SignalException as error:
            # An ordinary Exception to its callers: a sweep would count a failed job and go on.
            raise KeyboardInterrupt(f"signal {error.sigval}") from None
        except ChildFailedError as error:
            raise _told(error, logs) from None


def run_rank(main: Callable[[], Any]) -> int:
    """Run ``main`` as the body of a worker module: ``raise SystemExit(run_rank(main))``.

    An `N2NError` goes to the launching process by elastic's error file (or, under plain ``torchrun``, to
    stderr as ``n2n: error: ...``) with exit code 2, an interrupt gives 130, any other exception its traceback
    and 1. One rank of several ends right here, without the interpreter's own exit: gloo's threads abort there
    now and then, process group destroyed or not.
    """
    if _LAUNCHED in os.environ:
        stop_with_parent()
    code = _outcome(main)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def heard(signals: Iterable[signal.Signals]) -> list[signal.Signals]:
    """The signals that this process shall hear: under nohup, not SIGHUP."""
    return [s for s in signals if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


def _outcome(main: Callable[[], Any]) -> int:
    try:
        main()
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        mistake = isinstance(error, N2NError)
        told = report(error)
        if not (told and _LAUNCHED in os.environ):  # somebody else's agent does not show our file as we would
            text = f"n2n: error: {error}\n" if mistake else traceback.format_exc()
            print(text, end="", file=sys.stderr, flush=True)
        return 2 if mistake else 1


def report(error: BaseException) -> bool:
    """Write ``error`` to the agent's error file, in the format of torch's ErrorHandler; the first one stays.

    To be called before this rank leaves the process group: its peers fail then, and must not be heard first.
    False without an agent.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    now = time.time()
    extra = {
        "py_callstack": "".join(traceback.format_exception(error)),
        "timestamp": str(int(now)),
        "time": now,
        "user_error": str(error) if isinstance(error, N2NError) else None,
        "of_this_run": isinstance(error, RunError),
    }
    message = {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}
    if not os.path.exists(path):
        whole = f"{path}.whole"  # the agent reads the file as soon as it is there
        with open(whole, "w") as file:
            json.dump({"message": message}, file)
        os.replace(whole, path)
    return True


def _told(error: Any, logs: str) -> BaseException:
    """The exception behind elastic's ChildFailedError: a user's mistake on any rank, else the first failure.

    Elastic names the rank it saw ending first, which often is one that only lost its peer.
    """
    reports = []
    for path in Path(logs).rglob("error.json"):
        with suppress(OSError, ValueError, KeyError):
            reports.append(json.loads(path.read_text())["message"]["extraInfo"])
    reports.sort(key=lambda r: (r.get("user_error") is None, r.get("time", float("inf"))))
    if reports and reports[0].get("user_error") is not None:
        return (RunError if reports[0].get("of_this_run") else N2NError)(reports[0]["user_error"])
    rank, failure = error.get_first_failure()
    codes = [f.exitcode for f in error.failures.values()]
    if not reports and all(code in _INTERRUPTED for code in codes):  # a signal reached the ranks themselves
        return KeyboardInterrupt(f"rank {rank} was interrupted")
    killed = [number for number, f in error.failures.items() if f.exitcode == -signal.SIGKILL]
    if killed:  # what the others report is that they lost it
        return RankLost(
            f"rank {killed[0]} was killed (signal 9; out of memory?); the same command goes on from its checkpoint"
        )
    if reports:
        return RankFailure(f"a rank failed:\n{reports[0]['py_callstack'].rstrip()}")
    return RankFailure(f"rank {rank} failed with exit code {failure.exitcode}")


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give back the signal handlers that the elastic agent replaces and never restores."""
    before = {s: signal.getsignal(s) for s in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            # Not the main thread, or a handler from C: then nothing was replaced.
            with suppress(ValueError, TypeError):
                signal.signal(number, handler)


@contextmanager
def _environment(devices: int) -> Iterator[None]:
    """What the ranks inherit: a share of the cores, unless the user said otherwise; put back at the end."""
    # C++ warnings off: DDP has one for every network that has no unused parameters.
    wanted = {
        "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(s.name for s in heard(_SIGNALS)),
        _LAUNCHED: "1",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        # Of a signal only: where a rank dies, the others get the 30 s. Older versions of PyTorch do not know it.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVING_S)),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        wanted["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // devices))
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
