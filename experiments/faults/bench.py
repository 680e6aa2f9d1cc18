"""What the faults are injected into: real commands on the tiny Inception and embedded images, seconds long."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from n2n_cli import cli

ROOT = Path(__file__).parents[2]
SHORT = [
    "data.train_images=640", "data.val_images=200", "training.batch_size=16", "training.log_every=5", "device=cpu",
    "training.checkpoint_every_epochs=0.2", "training.default_epochs={teacher:4,student:2}",
]  # fmt: skip
TEACHER = ("train", "teacher", *SHORT, "progress=false")
STEPS = 160  # of the teacher
MARK = "N2N_FAULTS"  # in the environment of a command and of all that it starts
fork = True  # false where this process has run something already
_marks: dict[int, bytes] = {}
PATIENCE_S = 30  # within which everything ends when a part of it died


@dataclass(frozen=True)
class Row:
    """One line of the table; ``harm``: what the fault does where nothing protects from it, as it was seen."""

    number: str
    fault: str
    expected: str
    harm: str
    times: int


class Failed(Exception):
    """The expected did not come true."""


def check(true: Any, told: str) -> None:
    if not true:
        raise Failed(told)


class Forked:
    """A command in a fork of this process, which has imported everything and run nothing: without the seconds that
    its imports take. As far as it is asked here, a `subprocess.Popen`."""

    def __init__(self, words: Sequence[str], where: Path, env: dict[str, str]):
        self.returncode: int | None = None
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                _hear_hangups()
                os.chdir(where)
                os.environ.update(env)
                null = os.open(os.devnull, os.O_RDWR)
                for handle, to in ((0, null), (1, null), (2, self._err.fileno())):
                    os.dup2(to, handle)
                sys.argv = ["n2n", *words]
                code = cli.main(list(words))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 3600) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("n2n", timeout)
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float = 3600) -> tuple[None, bytes]:
        self.wait(timeout)
        self._err.seek(0)
        return None, self._err.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


Process = subprocess.Popen[bytes] | Forked


def _hear_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # this program may have been started by nohup


def n2n(*words: str, where: Path, inject: str = "", **env: str) -> Process:
    """A command in a session of its own, one thread, its error output kept.

    ``inject``: a fault for ``inject/sitecustomize.py``; ``env``: more environment.
    """
    own = {"OMP_NUM_THREADS": "1", MARK: uuid.uuid4().hex, **env}
    if (
        fork
        and not inject
        and not any(word.startswith(("devices=", "workers=", "launch.", "--jobs", "-m")) for word in words)
    ):
        process: Process = Forked(words, where, own)
    else:
        paths = [str(ROOT), *([str(Path(__file__).parent / "inject")] if inject else [])]
        process = subprocess.Popen(
            [sys.executable, "-m", "n2n_cli", *words], cwd=where, start_new_session=True, preexec_fn=_hear_hangups,
            env={**os.environ, **own, "PYTHONPATH": ":".join(paths), "N2N_INJECT": inject},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    _marks[process.pid] = f"{MARK}={own[MARK]}".encode()
    return process


def teacher(where: Path, *more: str, inject: str = "", **env: str) -> Process:
    return n2n("train", "teacher", *SHORT, *more, where=where, inject=inject, **env)


def finished(process: Process, expected: int | Sequence[int] = 0, wait_s: float = 300) -> str:
    """Its error output, once it has ended with the exit code that is expected."""
    try:
        _, err = process.communicate(timeout=wait_s)
    except subprocess.TimeoutExpired:
        killed(process)
        raise Failed(f"not ended after {wait_s} s") from None
    codes = [expected] if isinstance(expected, int) else expected
    check(process.returncode in codes, f"exit code {process.returncode}, expected {expected}:\n{err.decode()[-2000:]}")
    check("Traceback" not in err.decode(), f"a traceback:\n{err.decode()[-3000:]}")
    return err.decode()


def killed(process: Process) -> bool:
    """SIGKILL to the command and all that it started; whether it was still there."""
    alive = process.poll() is None
    for pid in members(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    return alive


def inside(place: Path, *words: str) -> tuple[int, str]:
    """A command in this process, begun in ``place``: exit code and error output. For thousands of them."""
    here, err = Path.cwd(), io.StringIO()
    os.chdir(place)
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            return cli.main(list(words)), err.getvalue()
    except Exception:
        return 1, err.getvalue() + traceback.format_exc()
    finally:
        os.chdir(here)


def errors(told: str) -> list[str]:
    """The lines of an error output that are no progress."""
    return [line for line in told.splitlines() if line.startswith("n2n: error")]


def run_of(where: Path, name: str = "teacher-seed0") -> Path:
    found = next(iter(where.glob(f"runs/*/{name}")), None)
    return found or where / "nowhere"


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*.pt"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(newest(run), weights_only=True)["model"]


def same(ours: Path, theirs: Path) -> bool:
    a, b = weights(ours), weights(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="n2n-faults-") as name:
        yield Path(name)


@contextmanager
def tmpfs(size: str) -> Iterator[Path]:
    """A folder of its own small file system. Root alone may mount one."""
    with folder() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def step(run: Path) -> int:
    """The step of the last whole row of the log; -1 before the first."""
    try:
        rows = (run / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(rows[-1])["step"])
    except (IndexError, OSError, ValueError):
        return -1


def until(true: Callable[[], bool], process: Process, wait_s: float = 120) -> bool:
    """Waits for something to become true while the process lives; whether it did."""
    deadline = time.monotonic() + wait_s
    while process.poll() is None:
        if true():
            return True
        check(time.monotonic() < deadline, "waited in vain")
        time.sleep(0.005)
    return False


def at_step(number: int, where: Path, process: Process, name: str = "teacher-seed0") -> bool:
    return until(lambda: step(run_of(where, name)) >= number, process)


def members(process: Process) -> list[int]:
    """The living processes that a command started, itself included, whatever became their parent or session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            marked = _marks[process.pid] in (path / "environ").read_bytes().split(b"\0")
            if state != "Z" and (marked or int(session) == process.pid):
                found.append(int(path.name))
    return found


def gone(process: Process, wait_s: float = PATIENCE_S) -> float:
    """Seconds until nothing of its session is left."""
    began = time.monotonic()
    while members(process):
        check(time.monotonic() - began < wait_s, f"orphans after {wait_s} s: {members(process)}")
        time.sleep(0.05)
    return time.monotonic() - began
