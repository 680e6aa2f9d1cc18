"""Start the ranks of one run: fresh interpreters under PyTorch's elastic agent.

Nothing is pickled and no command line is replayed: every rank is ``python -m module args...``, so the same
worker module also runs under plain ``torchrun`` or SLURM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from n2n_cli.errors import N2NError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class RankFailure(RuntimeError):
    """A rank ended by something that is no user's mistake; the message holds its traceback."""


def launch(module: str, args: list[str], devices: int) -> None:
    """Run ``python -m module *args`` as ``devices`` ranks of this machine and wait for them.

    The module's main goes through `run_rank`. Signals reach the ranks, which save and stop.

    Raises:
        N2NError: what a rank raised, the same one line.
        RankFailure: a rank failed otherwise, with its traceback.
        KeyboardInterrupt: a signal (SIGINT, SIGTERM, ...) stopped the agent.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="n2n-ranks-") as logs, _own_signals(), _threads(devices):
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
            raise _told(error) from None


def run_rank(main: Callable[[], Any]) -> int:
    """Run ``main`` as the body of a worker module; the exit code, as in ``raise SystemExit(run_rank(main))``.

    An `N2NError` goes to the launching process by elastic's error file (or, under plain ``torchrun``, to
    stderr as ``n2n: error: ...``) with exit code 2, an interrupt gives 130, and any other exception its
    traceback and 1.
    """
    try:
        main()
        return 0
    except KeyboardInterrupt:
        return 130
    except N2NError as error:
        if not _write_error_file(str(error), "", user_error=True) or _under_torchrun():
            print(f"n2n: error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if not _write_error_file(message, traceback.format_exc(), user_error=False) or _under_torchrun():
            traceback.print_exc()
        return 1


def _under_torchrun() -> bool:
    """Whether somebody else's agent started us: it shows the error file badly, so we print as well."""
    return _MARK not in os.environ


_MARK = "N2N_LAUNCHED"


def _write_error_file(message: str, callstack: str, *, user_error: bool) -> bool:
    """Tell the agent, in the format of torch's ErrorHandler; False without an agent."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return False
    extra = {
        "py_callstack": callstack or message,
        "timestamp": str(int(time.time())),
        "user_error": user_error,
    }
    with open(path, "w") as file:
        json.dump({"message": {"message": message, "extraInfo": extra}}, file)
    return True


def _told(error: Any) -> BaseException:
    """The exception behind elastic's ChildFailedError: a user's mistake on any rank comes first."""
    first_rank, first = error.get_first_failure()
    if first.exitcode == 130:  # a signal reached the ranks themselves
        return KeyboardInterrupt(f"rank {first_rank} was interrupted")
    for failure in [first, *error.failures.values()]:
        data = failure.error_file_data.get("message")
        if isinstance(data, dict) and data.get("extraInfo", {}).get("user_error"):
            return N2NError(data["message"])
    data = first.error_file_data.get("message")
    if isinstance(data, dict):
        return RankFailure(f"rank {first_rank} failed:\n{data.get('extraInfo', {}).get('py_callstack', '')}")
    return RankFailure(f"rank {first_rank} failed: exit code {first.exitcode} {first.message}")


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
def _threads(devices: int) -> Iterator[None]:
    """Share the cores out among the ranks, unless the user said otherwise."""
    wanted = {_MARK: "1"}
    if "OMP_NUM_THREADS" not in os.environ:
        wanted["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // devices))
    before = {key: os.environ.get(key) for key in [*wanted, "TORCHELASTIC_SIGNALS_TO_HANDLE"]}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
