"""A study, synthesised: run folders exactly as the commands write them, with known curves."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LABELS = {
    "teacher": "Teacher",
    "wider": "Net2Wider",
    "random_pad": "Random pad",
    "random_init": "Random init",
    "deeper": "Net2Deeper",
    "deep_random_init": "Deep random init",
}
# (accuracy at step 0, final accuracy, epochs to 63 % of the way, parameters, function gap)
CURVES: dict[str, tuple[float, float, float, int, dict[str, float] | None]] = {
    "teacher": (0.0625, 0.900, 1.6, 4512, None),
    "wider": (0.900, 0.915, 1.5, 10123, {"eval": 2.1e-7, "train": 3.3e-7}),
    "random_pad": (0.310, 0.914, 0.25, 10123, {"eval": 1.9, "train": 1.7}),
    "random_init": (0.061, 0.917, 0.9, 10123, None),
    "deeper": (0.900, 0.921, 1.8, 14890, {"eval": 8.0e-7, "train": 9.1e-7}),
    "deep_random_init": (0.063, 0.880, 1.4, 14890, None),
}
STEPS_PER_EPOCH, BATCH = 375, 32


def synthesize(
    study: Path,
    arms: tuple[str, ...] = tuple(CURVES),
    *,
    seeds: int = 3,
    finals: dict[str, list[float]] | None = None,
    variants: tuple[tuple[str, str, float], ...] = (),
    unfinished: tuple[str, ...] = (),
    synthetic: bool = True,
) -> Path:
    """Run folders ``<arm>[-variant]-seed<seed>``; ``finals`` sets the last accuracy of an arm's seeds exactly."""
    plain = [(arm, arm, 1.0 if "init" in arm or arm == "teacher" else 0.1) for arm in arms]
    for name, arm, lr_scale in [*plain, *variants]:
        for seed in range(seeds):
            final = (finals or {}).get(name, [])
            write_run(
                study / f"{name}-seed{seed}",
                arm,
                seed,
                lr_scale=lr_scale,
                final=final[seed] if seed < len(final) else None,
                finished=f"{name}-seed{seed}" not in unfinished,
                synthetic=synthetic,
            )
    return study


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    *,
    lr_scale: float = 1.0,
    final: float | None = None,
    finished: bool = True,
    synthetic: bool = True,
) -> None:
    noise = random.Random(f"{arm} {seed} {lr_scale}")
    start, end, tau, parameters, gap = CURVES[arm]
    shift = random.Random(seed).gauss(0, 0.004)  # a seed's teacher is better or worse, and its students with it
    end = round((end + shift + noise.gauss(0, 0.003)) * 2000) / 2000 if final is None else final
    teacher = folder.parent / f"teacher-seed{seed}"
    if start == 0.900 and (teacher / "done.json").exists():
        start = json.loads((teacher / "done.json").read_text())["final"]["val/top1"]
    epochs = 12 if arm == "teacher" else 6
    total = epochs * STEPS_PER_EPOCH
    evaluations = {
        0,
        *(round(i * STEPS_PER_EPOCH / 8) for i in range(9)),
        *range(0, total + 1, STEPS_PER_EPOCH),
    }
    rows: list[dict[str, Any]] = []
    top = 0.0
    for step in range(0, total + 1):
        if not finished and step > total // 3:
            break
        epoch = step / STEPS_PER_EPOCH
        row: dict[str, Any] = {
            "step": step,
            "epoch": epoch,
            "images": step * BATCH,
            "time_s": round(step * 0.011, 3),
        }
        way = (1 - math.exp(-epoch / tau)) / (1 - math.exp(-epochs / tau))
        if step and step % 25 == 0:
            loss = 2.8 * (1 - way) * (1 - start) + 0.35 + noise.gauss(0, 0.03) + 0.4 * (1 - end)
            lr = 0.1 * lr_scale * (1 + math.cos(math.pi * step / total)) / 2
            train = {
                "train/loss": loss,
                "train/top1": max(0.0, 1 - loss / 3),
                "lr": lr,
                "perf/images_per_s": 2900.0,
            }
            rows.append(row | train)
        if step in evaluations:
            top = start if step == 0 else end if step == total else start + (end - start) * way + noise.gauss(0, 0.002)
            top = round(top * 2000) / 2000 if final is None else top
            rows.append(row | {"val/loss": 2.8 * (1 - top), "val/top1": top, "val/top5": min(1.0, top + 0.08)})
    steps = [{"op": "build", "name": "inception_bn_tiny", "num_classes": 16, "kwargs": {"width": 0.5477225575}}]
    if arm != "teacher":
        steps.append({"op": arm, "seed": seed, "noise": 0.0, "to": {"name": "inception_bn_tiny", "num_classes": 16}})
    info = {
        "format": 1, "command": "compare baselines", "arm": arm, "label": LABELS[arm], "seed": seed,
        "parameters": parameters, "macs": parameters * 70, "lr": 0.1 * lr_scale, "lr_scale": lr_scale,
        "epochs": epochs, "lineage": {"steps": steps}, "function_gap": gap,
        "teacher": None if arm == "teacher" else str(teacher), "synthetic": synthetic, "data": "shapes",
        "machine": {"cpu": "AMD EPYC 7763", "cores": 2, "torch": "2.14.1+cpu", "python": "3.11.7", "device": "cpu"},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nepochs: {epochs}\nout: runs\ndevices: 1\nmodel:\n  name: inception_bn_tiny\n  width:"
        " 1.0\n  stem: small\ndata:\n  name: shapes\n  train_images: 12000\n  val_images: 2000\n  image_size:"
        " 32\noptim:\n  name: sgd\n  lr: 0.1\n  momentum: 0.9\n  weight_decay: 0.005\n  schedule:\n    name:"
        " cosine\n    warmup_epochs: 0\ntraining:\n  batch_size: 32\n  ema_decay: 0.99\n  label_smoothing:"
        " 0.0\n  precision: auto\n" + ("" if arm == "teacher" else f"op:\n  name: {arm}\nlr_scale: {lr_scale}\n")
    )
    if finished:
        scores = {"val/top1": top, "val/top5": min(1.0, top + 0.08), "val/loss": 2.8 * (1 - top)}
        done = {
            "step": total,
            "images": total * BATCH,
            "epochs": epochs,
            "time_s": total * 0.011,
            "final": scores,
        }
        (folder / "done.json").write_text(json.dumps(done | {"best": scores, "start": {"val/top1": start}}))


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """`synthesize` in a fresh folder."""
    return lambda *args, **kwargs: synthesize(tmp_path / "study", *args, **kwargs)
