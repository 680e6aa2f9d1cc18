"""Rows 1, 2, 4, 5, 6, 15: processes that are killed, stopped, orphaned, doubled."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import torch
from bench import (
    PATIENCE_S,
    SHORT,
    STEPS,
    Process,
    Row,
    at_step,
    check,
    errors,
    finished,
    folder,
    gone,
    killed,
    members,
    n2n,
    newest,
    run_of,
    same,
    step,
    teacher,
)  # fmt: skip

from n2n_cli.training import checkpoint

TWO = ("devices=2",)
WORKERS = ("workers=2",)
SAME = "nothing lost, final weights identical to the bit"


def kill(times: int, whole: Path) -> Row:
    """SIGKILL at a random moment, again and again, until the run is done."""
    injected = 0
    while injected < times:
        with folder() as place:
            injected += _to_the_end(place, times - injected)
            check(same(run_of(place), whole), "killed and resumed: other weights")
    return Row("1", "SIGKILL at a random time, resumed to the end", SAME, _other_without_momentum(whole), injected)


def _to_the_end(place: Path, times: int, *more: str) -> int:
    """Kills a teacher at most ``times`` times at random moments, and lets it end; how often it was killed."""
    injected = 0
    while not (run_of(place) / "done.json").exists():
        before = _kept(place)
        process = teacher(place, *more)
        if injected < times:
            at_step(random.randint(max(0, before), STEPS), place, process)
            time.sleep(random.random() * 0.05)
            injected += killed(process)
            gone(process)
            check(_kept(place) >= before, "a checkpoint is lost")
        else:
            finished(process)
    return injected


def _kept(place: Path) -> int:
    steps = [int(path.name[5:13]) for path in run_of(place).glob("checkpoints/step_*.pt")]
    return max(steps, default=-1)


def _other_without_momentum(whole: Path) -> str:
    """The comparison can fail: a run whose checkpoint lost its optimizer ends elsewhere."""
    with folder() as place:
        finished(teacher(place, "max_steps=100"))
        path = newest(run_of(place))
        state = torch.load(path, weights_only=True)
        del state["optimizer"]
        path.unlink()
        checkpoint.save(path.parent, state, step=100)
        finished(teacher(place))
        check(not same(run_of(place), whole), "without its optimizer state: the same weights?")
    return "without the optimizer's state: other weights"


def kill_in_a_write(times: int, whole: Path) -> Row:
    """SIGKILL in the middle of a write, before a sync or a rename."""
    for number in range(times):
        with folder() as place:
            kind = ("write", "fsync", "replace")[number % 3]
            process = teacher(place, inject=f"{kind}:{random.randint(1, 20)}")
            process.communicate()
            check(process.returncode == -signal.SIGKILL, "not killed")
            told = finished(teacher(place))
            check("damaged" not in told, told)
            check(same(run_of(place), whole), "killed in a write and resumed: other weights")
            check(not list(run_of(place).rglob(".tmp-*")), "a temporary file stayed")
    return Row("1", "... inside a write, before a sync, before a rename", SAME, _half_a_file(), times)


def _half_a_file() -> str:
    """A plain write that is killed half way leaves a file under the right name that does not load."""
    with folder() as place:
        torch.save({"model": torch.zeros(10_000)}, buffer := io.BytesIO())
        path = place / "checkpoint.pt"
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        with contextlib.suppress(Exception):
            torch.load(path, weights_only=True)
            check(False, "half a file loads?")
    return "a plain write leaves half a file under its name"


def kill_ranks(times: int, whole: Path) -> Row:
    return _kill_with("2", "SIGKILL of a run with 2 ranks", times, *TWO)


def kill_workers(times: int, whole: Path) -> Row:
    """As `kill`, of a run over image files that two processes decode."""
    with folder() as place:
        images = image_folder(place / "images", 160, 32)
        return _kill_with("2", "SIGKILL of a run with 2 data workers", times, *WORKERS, *of_images(images))


def image_folder(root: Path, train: int, val: int) -> Path:
    """Random JPEG files in two classes, in ImageNet's layout."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for number in range(count):
            path = root / part / ("cat", "dog")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 128, (40, 40, 3)) + 100 * (number % 2)
            Image.fromarray(pixels.astype("uint8")).save(path, quality=90)
    return root


def of_images(root: Path) -> list[str]:
    return [
        "data=imagefolder", f"data.root={root}", "data.image_size=32", "model=inception_bn_tiny", "optim=sgd",
        "training=default", "training.batch_size=16", "training.default_epochs={teacher:16,student:4}",
        "data.cache=none", "training.checkpoint_every_epochs=1", "training.log_every=5",
        "data.train_images=null", "data.val_images=null",
    ]  # fmt: skip


def _kill_with(number: str, fault: str, times: int, *more: str) -> Row:
    injected = 0
    with folder() as base:
        finished(teacher(base, *more))
        while injected < times:
            with folder() as place:
                injected += _to_the_end(place, times - injected, *more)
                check(same(run_of(place), run_of(base)), f"{fault}: other weights")
    return Row(number, fault, SAME, "", injected)


def kill_grow(times: int, whole: Path) -> Row:
    """SIGKILL while a student is grown, proved, written and trained."""
    words = ("grow", "--op", "wider", *SHORT)
    injected = 0
    with folder() as base:
        shutil.copytree(whole.parents[2], base, dirs_exist_ok=True)
        began = time.monotonic()
        finished(n2n(*words, where=base))
        takes = time.monotonic() - began
        while injected < times:
            with folder() as place:
                shutil.copytree(whole.parents[2], place, dirs_exist_ok=True)
                while not (run_of(place, "wider-seed0") / "done.json").exists():
                    process = n2n(*words, where=place)
                    if injected < times:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(random.random() * takes)
                        injected += killed(process)
                    else:
                        finished(process)
                check(same(run_of(place, "wider-seed0"), run_of(base, "wider-seed0")), "grow: other weights")
    return Row("2", "SIGKILL during grow", SAME, "", injected)


def kill_compare(times: int, whole: Path) -> Row:
    """SIGKILL of a study with two runs at once."""
    words = ("compare", "study.arms=[wider,random_init]", "--seeds", "2", "--jobs", "2", *SHORT, "progress=false")
    injected = 0
    with folder() as base:
        began = time.monotonic()
        finished(n2n(*words, where=base))
        takes = time.monotonic() - began
        runs = [path.parent.name for path in base.glob("runs/*/*/done.json")]
        check(len(runs) == 6, f"{runs}")
        while injected < times:
            with folder() as place:
                while True:
                    process = n2n(*words, where=place)
                    if injected >= times:
                        finished(process)
                        break
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(random.uniform(0.2, 0.7) * takes)
                    if not killed(process):
                        break
                    injected += 1
                    gone(process)
                for name in runs:
                    check(same(run_of(place, name), run_of(base, name)), f"compare: {name}: other weights")
    return Row("2", "SIGKILL of a study with two jobs", SAME, "", injected)


def signals(times: int, whole: Path) -> Row:
    """SIGTERM, SIGUSR1, SIGHUP, Ctrl-C: once, twice within a blink, during a save."""
    kinds = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]
    for number in range(times):
        with folder() as place:
            saving = number % 3 == 2
            process = teacher(place, inject="pause:3" if saving else "")
            if saving:
                assert isinstance(process, subprocess.Popen) and process.stderr
                while b"saving" not in process.stderr.readline():
                    check(process.poll() is None, "it saved nothing")
                time.sleep(0.5)
            else:
                at_step(random.randint(5, STEPS // 2), place, process)
            process.send_signal(kinds[number % 4])
            if number % 3 == 1:
                process.send_signal(kinds[number % 4])
            check("stopped after step" in finished(process, 130), "a signal was not told")
            check(_kept(place) >= step(run_of(place)), "steps are lost")
            finished(teacher(place))
            check(same(run_of(place), whole), "stopped by a signal and resumed: other weights")
    return Row(
        "4", "SIGTERM, SIGUSR1, SIGHUP, Ctrl-C; also twice; also during a save",
        "saved at the step, exit code 130, resumed to the same bits", _plain_signal(), times,
    )  # fmt: skip


def _plain_signal() -> str:
    """A Python program without a handler."""
    import sys

    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    check(process.wait() == -signal.SIGUSR1, "SIGUSR1 is harmless?")
    return "without a handler, SIGUSR1 ends a program at once"


def one_rank_signalled(times: int, whole: Path) -> Row:
    """A signal to one rank of two: both stop at the same step."""
    with folder() as base:
        finished(teacher(base, *TWO))
        for number in range(times):
            with folder() as place:
                process = teacher(place, *TWO)
                at_step(random.randint(5, STEPS // 2), place, process)
                os.kill(random.choice(ranks(process)), (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)[number % 3])
                finished(process, 130)
                gone(process)
                finished(teacher(place, *TWO))
                check(same(run_of(place), run_of(base)), "one rank signalled: other weights")
    return Row("4", "a signal to one rank of two", "both stop at the same step, saved, exit code 130", "", times)


def sweep_stopped(times: int, whole: Path) -> Row:
    """A signal stops a sweep, not only its job."""
    for number in range(times):
        with folder() as place:
            process = n2n("train", "teacher", "-m", "seed=0,1", *SHORT, where=place)
            at_step(5, place, process)
            process.send_signal((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[number % 3])
            finished(process, 130)
            check(not run_of(place, "teacher-seed1").exists(), "the sweep went on")
    return Row("4", "a signal to a sweep", "the sweep stops too, exit code 130", "", times)


def ranks(process: Process) -> list[int]:
    """The processes of the ranks that a command started."""
    return [pid for pid in members(process) if b"commands.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def rank_dies(times: int, whole: Path) -> Row:
    """SIGKILL of one rank of two."""
    slowest = 0.0
    for _ in range(times):
        with folder() as place:
            process = teacher(place, *TWO)
            at_step(random.randint(0, STEPS // 2), place, process)
            os.kill(random.choice(ranks(process)), signal.SIGKILL)
            began = time.monotonic()
            told = finished(process, 2, PATIENCE_S)
            check(len(errors(told)) == 1 and "was killed" in told, told)
            gone(process)
            slowest = max(slowest, time.monotonic() - began)
    return Row(
        "5", "one rank of two is killed", f"all end within {PATIENCE_S} s ({slowest:.0f} s), told once", "", times
    )


def parent_dies(times: int, whole: Path) -> Row:
    """SIGKILL of the command that started two ranks, or the runs of a study."""
    slowest = 0.0
    study = ("compare", "study.arms=[wider]", "--seeds", "2", "--jobs", "2", *SHORT, "progress=false")
    for number in range(times):
        with folder() as place:
            process = n2n(*study, where=place) if number % 2 else teacher(place, *TWO)
            at_step(random.randint(5, STEPS // 2), place, process)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            slowest = max(slowest, gone(process))
            check(_kept(place) >= step(run_of(place)), "steps are lost")
    return Row(
        "5", "the parent of two ranks, or of two runs, is killed",
        f"the rest saves and ends within {PATIENCE_S} s ({slowest:.0f} s), no orphan", "", times,
    )  # fmt: skip


def restarts(times: int, whole: Path) -> Row:
    """A rank is killed, and the command starts them again."""
    with folder() as base:
        finished(teacher(base, *TWO))
        for _ in range(times):
            with folder() as place:
                process = teacher(place, *TWO, "launch.max_restarts=1")
                at_step(random.randint(5, STEPS // 2), place, process)
                os.kill(random.choice(ranks(process)), signal.SIGKILL)
                check("restart 1 of 1" in finished(process), "not told")
                check(same(run_of(place), run_of(base)), "restarted: other weights")
    return Row("6", "a rank is killed under launch.max_restarts=1", "recovers, the same bits", "", times)


def doubled(times: int, whole: Path) -> Row:
    """The same command twice: on a run, and on a study."""
    for number in range(times):
        with folder() as place:
            first = teacher(place)
            at_step(1, place, first)
            (holder,) = run_of(place).glob(".training")
            check(f"process {first.pid}" in holder.read_text(), "who holds it?")
            first.send_signal(signal.SIGSTOP)  # it is slow: the second must not have it
            told = finished(teacher(place), 2)
            check(f"process {first.pid}" in told and len(errors(told)) == 1, told)
            first.send_signal(signal.SIGCONT)
            if number % 2:
                killed(first)  # a stale lock holds nobody
                finished(teacher(place))
            else:
                finished(first)
            check(same(run_of(place), whole), "two commands: other weights")
    return Row("15", "a second command on the same run; a killed one's lock", "refused, says who holds it", "", times)
