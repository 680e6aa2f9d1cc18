"""Rows 7, 11 to 14, 16, 17: what is around a run: its settings, command lines, disks, numbers, images, memory, time."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from bench import (
    ROOT,
    SHORT,
    STEPS,
    TEACHER,
    Row,
    at_step,
    check,
    errors,
    finished,
    folder,
    inside,
    killed,
    n2n,
    newest,
    run_of,
    same,
    step,
    teacher,
    tmpfs,
)  # fmt: skip
from stops import TWO, image_folder, of_images

from n2n_cli import records


def other_settings(times: int, whole: Path) -> Row:
    """Resumed with other ranks, threads, data, settings, versions."""
    done = 0
    for _ in range(times):
        with folder() as place:
            finished(teacher(place, "max_steps=60"))
            run = run_of(place)

            code, told = inside(place, *TEACHER, "optim.weight_decay=0.5", "max_steps=1")
            check(code == 0 and not (run / "done.json").exists(), told)  # another folder: another run
            config = run / "config.yaml"
            good = config.read_text()
            config.write_text(good.replace("lr: 0.1", "lr: 0.2"))
            code, told = inside(place, *TEACHER)
            check(code == 2 and "optim.lr=0.2, not 0.1" in told and len(errors(told)) == 1, told)
            config.write_text(good)

            info = records.read(run / "run.json", records.RUN)
            for key in ("torch", "torchvision", "n2n", "python"):
                records.write(run / "run.json", {**info, "machine": {**info["machine"], key: "0.0"}})
                code, told = inside(place, *TEACHER)
                check(code == 2 and f"{key} 0.0 -> " in told and len(errors(told)) == 1, told)
            code, told = inside(place, *TEACHER, "accept_versions=true", "max_steps=5")
            check(code == 0, told)
            noted = records.read(run / "run.json", records.RUN)
            check(noted["machines_before"][-1]["python"] == "0.0", noted)

            finished(teacher(place, *TWO, "max_steps=5"))  # by the word of whoever typed it
            noted = records.read(run / "run.json", records.RUN)
            check(noted["machine"]["devices"] == 2 and len(noted["machines_before"]) == 2, noted)
            finished(teacher(place, "workers=0", OMP_NUM_THREADS="2"))
            noted = records.read(run / "run.json", records.RUN)
            check(noted["machine"]["threads"] == 2 and len(noted["machines_before"]) == 3, noted)
            done += 8
    return Row("7", "resumed with another rate, PyTorch, torchvision, Python, n2n; with other ranks, threads",
               "refused by name, or noted in run.json", "", done)  # fmt: skip


WORDS = [
    "train", "teacher", "student", "grow", "compare", "evaluate", "inspect", "data", "check", "--op", "wider", "seed=",
    "seed=-1", "optim.lr=abc", "model=resnet1", "data.root=/x", "=", "--", "-m", "epochs=1e99", "op.new=", "{", "'",
    "training.batch_size=[1,2]", "op.layers={a:b", "~model", "+x=1", "--help", "out=/proc/x", "ü=ß", "a b",
    "model.width=nan", "data=imagefolder", "weights=/dev/null", "teacher=..", "--lr", "study.arms=[]", "max_steps=0",
    "epochs=null", "optim=null", "model={}", "ops={}", "hydra.run.dir=x", "hydra/launcher=x", "seed=1,2", "++seed=1",
    "jobs=-1", "devices=0", "device=tpu", "${seed}", "out=${oc.env:NOPE}", "training=imagenet", "data=cifar10",
]  # fmt: skip


def fuzzed_lines(times: int, whole: Path) -> Row:
    """Random command lines."""
    for _ in range(times):
        with folder() as place:
            line = [random.choice(WORDS) for _ in range(random.randint(1, 5))]
            if random.random() < 0.5:  # more often what reaches a command
                line = [
                    *random.choice([["train", "teacher"], ["grow", "--op", "wider"], ["compare"], ["evaluate"]]),
                    *line,
                ]
            code, told = inside(place, *line, "max_steps=1", *(SHORT if random.random() < 0.5 else []))
            check(code in (0, 2) and "Traceback" not in told, f"{line}: {code}, {told}")
            left = [path for path in place.iterdir()] if code == 2 else []
            check(code == 0 or (len(errors(told)) == 1 and not left), f"{line}: {told}, left {left}")
    return Row("11", "random command lines", "exit code 0 or 2, one line, nothing left behind", "", times)


def fuzzed_yaml(times: int, whole: Path) -> Row:
    """Groups of a ``--config-dir`` that are senseless, or no YAML."""
    from files import senseless

    groups = {group: yaml.safe_load((ROOT / "conf" / group / name).read_text()) for group, name in (
        ("model", "inception_bn_tiny.yaml"), ("data", "shapes.yaml"), ("optim", "sgd.yaml"),
        ("training", "default.yaml"), ("op", "wider.yaml"), ("study", "baselines.yaml"),
    )}  # fmt: skip
    for number in range(times):
        with folder() as place:
            group = random.choice(list(groups))
            text = yaml.safe_dump(senseless(groups[group], random.randint(1, 3)))
            if number % 4 == 0:
                at = random.randrange(len(text))
                text = text[:at] + random.choice(["\t", "{", "&a", "*b", "!!python/none", "\x00", ":"]) + text[at:]
            conf = place / "conf"
            (conf / group).mkdir(parents=True)
            (conf / group / "odd.yaml").write_text(text)
            command = {"op": ["grow", "op=odd"], "study": ["compare", "study=odd", "jobs=1"]}.get(
                group, ["train", "teacher", f"{group}=odd"]
            )
            code, told = inside(place, *command, "max_steps=1", "device=cpu", "--config-dir", str(conf))
            check(code in (0, 2) and "Traceback" not in told, f"{text}: {code}, {told}")
            left = [path for path in place.iterdir() if path != conf]
            check(code == 0 or (len(errors(told)) == 1 and not left), f"{text}: {told}, left {left}")
    return Row("11", "senseless YAML files", "exit code 0 or 2, one line, nothing left behind", "", times)


def full_disk(times: int, whole: Path) -> Row:
    """A small file system fills up during the run."""
    with tmpfs("3m") as place:
        for _ in range(times):
            process = teacher(place)
            at_step(random.randint(10, STEPS // 2), place, process)
            fill(place)
            check("No space left" in finished(process, 2), "a full disk was not told")
            (place / "filler").unlink()
            finished(teacher(place))
            check(same(run_of(place), whole), "after a full disk: other weights")
            subprocess.run(["rm", "-r", place / "runs"], check=True)
    return Row("12", "disk full at a checkpoint", "one line, exit code 2; with room again the same bits",
               _stub(), times)  # fmt: skip


def fill(place: Path) -> None:
    with open(place / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)


def _stub() -> str:
    """torch.save on a full disk."""
    with tmpfs("1m") as place:
        with contextlib.suppress(Exception):
            torch.save({"model": torch.zeros(10**6)}, place / "checkpoint.pt")
        check((place / "checkpoint.pt").exists(), "torch.save leaves nothing?")
    return "torch.save leaves a stub under the name"


def full_disk_at_logs(times: int, whole: Path) -> Row:
    """TensorBoard's files and metrics.jsonl cannot grow, while there is nothing to save: training goes on."""
    with tmpfs("3m") as place:
        for _ in range(times):
            rare = [f"training.{key}=100" for key in ("checkpoint_every_epochs", "eval_every_epochs")]
            process = teacher(place, *rare, "training.evals_first_epoch=1", "training.log_every=1", "epochs=20")
            at_step(60, place, process, "teacher-epochs20-seed0")
            fill(place)
            time.sleep(1)
            (place / "filler").unlink()
            told = finished(process)
            check(told.count("n2n: warning: cannot write") <= 2, told)
            (run,) = place.glob("runs/*/teacher-*")
            rows = [row["step"] for row in records.rows(run / "metrics.jsonl")]
            check(rows == list(range(801)), f"rows are missing: {rows}")
            subprocess.run(["rm", "-r", place / "runs"], check=True)
    return Row("12", "disk full for a second while only logs are written", "training goes on, one warning, no row lost",
               "", times)  # fmt: skip


def full_disk_at_report(times: int, whole: Path) -> Row:
    """No room for a study's report; then there is."""
    words = ("compare", "study.arms=[continue]", *SHORT, "progress=false", "jobs=1")
    with tmpfs("8m") as place:
        finished(n2n(*words, where=place))
        study = next(place.glob("runs/*"))
        for number in range(times):
            name = ("report.html", "curves.png", "table.csv")[number % 3]
            before = (study / name).read_bytes()
            asked = (*words, f"thresholds=[0.{number + 1}]")  # others than before: to be written again
            fill(place)
            code, told = inside(place, *asked)
            check(code == 2 and "No space left" in told and len(errors(told)) == 1, f"{code}: {told}")
            (place / "filler").unlink()
            check((study / name).read_bytes() == before, f"{name}: neither the old nor the new one")
            check(inside(place, *asked)[0] == 0, "with room again")
            check((study / name).read_bytes() != before or name == "curves.png", f"{name}: not written again")
    return Row("12", "disk full at the report", "one line, exit code 2; the old report intact", "", times)


def read_only(times: int, whole: Path) -> Row:
    """The file system turns read-only during the run."""
    with tmpfs("30m") as place:
        for _ in range(times):
            process = teacher(place)
            at_step(random.randint(10, STEPS // 2), place, process)
            subprocess.run(["mount", "-o", "remount,ro", place], capture_output=True)  # refused while a file is open
            os.chmod(place, 0o755)
            told = finished(process, (0, 2))
            check(told.count("n2n: error") <= 1, told)
            subprocess.run(["mount", "-o", "remount,rw", place], check=True)
            finished(teacher(place))
            check(same(run_of(place), whole), "other weights")
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            code, told = inside(place, *TEACHER, "seed=7")
            check(code == 2 and "Read-only file system" in told and len(errors(told)) == 1, f"{code}: {told}")
            code, told = inside(place, *TEACHER)
            check(code == 0, told)  # of a finished run, nothing is to be written
            subprocess.run(["mount", "-o", "remount,rw", place], check=True)
            subprocess.run(["rm", "-r", place / "runs"], check=True)
    return Row("12", "a read-only file system", "one line, exit code 2, nothing half written", "", times)


def no_numbers(times: int, whole: Path) -> Row:
    """NaN in a loss: on all ranks, on one; a rate that diverges; nothing of it is kept."""
    for number in range(times):
        with folder() as place:
            at = random.randint(2, STEPS)
            more, inject = ((), f"loss:{at}") if number % 3 else (TWO, f"rank:{at}")
            told = finished(teacher(place, *more, inject=inject), 2)
            check(f"step {at} is nan" in told and len(errors(told)) == 1, told)
            kept = torch.load(newest(run_of(place)), weights_only=True)
            check(kept["step"] < at and all(v.isfinite().all() for v in kept["model"].values()), "NaN is kept")
            if not more:
                finished(teacher(place))
                check(same(run_of(place), whole), "other weights")
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (model(torch.full((1, 2), float("nan"))).sum()).backward()
    optimizer.step()
    check(model.weight.isnan().any(), "NaN does no harm?")
    fault = "a loss that is not a number, on every rank or on one"
    return Row("13", fault, "told with its step; the last good state kept",
               "one step of SGD, and every weight is NaN", times)  # fmt: skip


def overflow(times: int, whole: Path) -> Row:
    """fp16: steps whose gradients overflow are left out, and the scaler is restored at resume."""
    half = ("training.precision=fp16",)
    with folder() as base:
        code, told = inside(base, *TEACHER, *half)
        check(code == 0, told)
        scale = torch.load(newest(run_of(base)), weights_only=True)["scaler"]["scale"]
        for _ in range(times):
            with folder() as place:
                for steps in (random.randint(1, 50), STEPS):
                    code, told = inside(place, *TEACHER, *half, f"max_steps={steps}")
                    check(code == 0, told)
                check(same(run_of(place), run_of(base)), "fp16: other weights after a stop")
                ours = torch.load(newest(run_of(place)), weights_only=True)["scaler"]
                check(ours["scale"] == scale, f"{ours}")
    return Row("13", "fp16, stopped and resumed", f"the scaler goes on where it was (scale {scale:g})", "", times)


def workers(times: int, whole: Path) -> Row:
    """A data worker that is killed, or never answers."""
    with folder() as base:
        images = image_folder(base / "images", 160, 32)
        for number in range(times):
            with folder() as place:
                kind = ("kill_worker", "hang")[number % 2]
                words = ("workers=2", *of_images(images))
                process = teacher(place, *words, inject=f"{kind}:{random.randint(4, 10)}")
                told = finished(process, 2, 90)
                check("data workers:" in told and len(errors(told)) == 1 and "saved after step" in told, told)
                finished(teacher(place, *words))
    return Row(
        "14", "a data worker is killed, or hangs", "named within the timeout, the steps before it saved", "", times
    )


def images(times: int, whole: Path) -> Row:
    """Image files that are mutated: an error that names the file, or skipped and counted, up to a limit."""
    told_of = 0
    for number in range(0, times, 20):
        with folder() as place:
            root = image_folder(place / "images", 160, 32)
            files = sorted((root / "train").rglob("*.jpg"))
            bad = random.sample(files, 20)
            for index, path in enumerate(bad):
                data = bytearray(path.read_bytes())
                kind = (number + index) % 4
                if kind == 0:
                    data = data[: random.randrange(len(data) // 2)]
                elif kind == 1:
                    data[:2] = b"XX"
                elif kind == 2:
                    data = bytearray(random.randbytes(len(data)))
                else:
                    for _ in range(20):
                        data[random.randrange(len(data))] = random.randrange(256)
                path.write_bytes(data)
            code, told = inside(place, *TEACHER, *of_images(root))
            check(code == 2 and len(errors(told)) == 1 and str(root) in told, f"{code}: {told}")
            code, told = inside(place, *TEACHER, *of_images(root), "data.on_error=skip")
            check(code == 0 and "n2n: warning: skipped" in told, f"{code}: {told}")
            named = {path for path in bad if str(path) in told}
            check(len(named) >= 15, f"{len(named)} of 20 are named")  # some mutations leave a picture
            check(not [path for path in files if path not in bad and str(path) in told], "a good one is named")
            told_of += 20
    return Row(
        "14", "mutated image files", "an error that names the file; on_error=skip: told and counted", "", told_of
    )


def memory(times: int, whole: Path) -> Row:
    """A limit on the address space, reached in the middle of a run."""
    code = (
        "import resource, sys; from n2n_cli import cli, training; import n2n_cli.training.state as s\n"
        "step = s.Run.optimizer_step\n"
        "def tight(self, *batch):\n"
        "    if self.step == 40:\n"
        "        used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, -1))\n"
        "        import torch; self.big = torch.zeros(2**28)\n"
        "    return step(self, *batch)\n"
        "s.Run.optimizer_step = tight\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    for _ in range(times):
        with folder() as place:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            words = [sys.executable, "-c", code, *TEACHER, "workers=0"]
            done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True)
            check(done.returncode == 2 and "Traceback" not in done.stderr, done.stderr)
            check("not enough memory" in done.stderr and "training.accumulate" in done.stderr, done.stderr)
            finished(teacher(place))
            check(same(run_of(place), whole), "other weights")
    return Row("16", "out of memory", "a hint (batch size, accumulation), the state intact", "", times)


def soak(times: int, whole: Path) -> Row:
    """``times`` minutes of evaluations and checkpoints: memory, open files and threads stay level."""
    with folder() as place:
        process = teacher(
            place, "epochs=100000", "data.train_images=64", "training.checkpoint_every_epochs=0.5",
            "training.eval_every_epochs=0.5", "training.log_every=1",
        )  # fmt: skip
        seen: list[tuple[float, int, int]] = []
        name = "teacher-epochs100000-seed0"
        at_step(50, place, process, name)
        while len(seen) < max(20, times * 6):
            time.sleep(10 if times > 1 else 1)
            check(process.poll() is None, "it ended")
            base = Path(f"/proc/{process.pid}")
            status = dict(line.split(":", 1) for line in (base / "status").read_text().splitlines())
            resident = int(status["VmRSS"].split()[0]) / 1024
            seen.append((resident, len(list((base / "fd").iterdir())), int(status["Threads"])))
        steps = step(run_of(place, name))
        killed(process)
        warm, end = seen[len(seen) // 4 : len(seen) // 2], seen[-len(seen) // 4 :]
        for index, slack in ((0, 30), (1, 0), (2, 0)):
            before, after = max(row[index] for row in warm), max(row[index] for row in end)
            check(after <= before + slack, f"grows: {before} -> {after} ({('MB', 'files', 'threads')[index]})")
        told = f"{warm[-1][0]:.0f} -> {end[-1][0]:.0f} MB, {end[-1][1]} files, {end[-1][2]} threads"
    return Row("17", f"soak: {times} minutes, {steps // 2} evaluations and as many checkpoints",
               f"level after warm-up ({told})", "", 1)  # fmt: skip
