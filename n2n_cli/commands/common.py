"""Config -> plain arguments, and the run folder that every command writes in the same way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from n2n_cli import data, lineage
from n2n_cli.commands import folders
from n2n_cli.commands.folders import Plan
from n2n_cli.config import functions
from n2n_cli.errors import N2NError
from n2n_cli.models import OURS, custom, describe
from n2n_cli.schema import Data, Model, RunConfig
from n2n_cli.training import checkpoint
from n2n_cli.training.evaluate import Normalize
from n2n_cli.training.launch import launch
from n2n_cli.training.options import FitOptions

SMALL = 96  # px: up to here the stem that does not shrink the image by itself
SMALL_NETWORK = 100_000  # parameters
PROOF_IMAGES = 32  # of the batch that the function gap is measured on
runs_at_once = 1  # processes like this one that share the cores (see `parallel`)


def dataset(cfg: Data) -> data.Dataset:
    """The images of a config, loaded once a process. Raises N2NError."""
    return _dataset(json.dumps(asdict(cfg)))


@lru_cache(maxsize=1)
def _dataset(cfg: str) -> data.Dataset:
    arguments = json.loads(cfg)
    with enough_memory():
        return data.load(arguments.pop("name"), **{key: v for key, v in arguments.items() if v is not None})


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Raises N2NError where PyTorch cannot get the memory it asks for."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise N2NError(
            "not enough memory; try a smaller network, a smaller training.batch_size, or training.accumulate=2"
        ) from error


def network(cfg: Model, width: float, images: data.Dataset) -> dict[str, Any]:
    """Arguments of `lineage.start`: name, num_classes, width, and what else the constructor takes."""
    arguments: dict[str, Any] = {"name": cfg.name, "num_classes": images.num_classes, "width": width}
    if custom.is_spec(cfg.name) and width == 1.0:  # a function of the user's need not know of widths
        del arguments["width"]
    if cfg.name in OURS:
        stem = ("small" if images.image_size <= SMALL else "imagenet") if cfg.stem == "auto" else cfg.stem
        arguments |= {"extra_pairs": cfg.extra_pairs, "pairs_at": cfg.pairs_at, "stem": stem}
        arguments |= {"dropout": cfg.dropout}
    return arguments | cfg.kwargs


def example(images: data.Dataset, count: int = PROOF_IMAGES) -> Tensor:
    """The first validation images ``[count, 3, H, W]``, normalised, on the CPU."""
    loader = data.eval_loader(images.val, batch_size=count)
    first, _ = next(iter(loader.batches(0)))
    return Normalize(images.mean, images.std, torch.device("cpu"))(first)


def load_network(path: Path, typed: Collection[str] = (), key: str = "model") -> tuple[nn.Module, dict[str, Any]]:
    """The network in a run folder or checkpoint, with its averaged weights if it has them, and the state.

    ``typed``, ``key``: as for `lineage.build`. Raises N2NError.
    """
    path = resolve(path)
    state = checkpoint.load(path)
    if missing := [key for key in ("lineage", "step", "config") if key not in state]:
        raise N2NError(f"{path} is not an n2n checkpoint (no '{missing[0]}' in it)")
    model = lineage.build(state["lineage"], typed, key)
    try:
        model.load_state_dict(checkpoint.weights(state))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise N2NError(f"{path}: its weights do not fit its lineage: {reason}") from error
    limit_threads(model)
    return model, state


def resolve(path: Path) -> Path:
    """`checkpoint.resolve`, with one line where all that is there is damaged. Raises N2NError."""
    with contextlib.redirect_stderr(io.StringIO()) as warnings:
        try:
            found = checkpoint.resolve(path)
        except N2NError as error:
            if damaged := warnings.getvalue().count("\n"):
                raise N2NError(f"no good checkpoint in {path}: {damaged} are damaged") from error
            raise
    print(warnings.getvalue(), end="", file=sys.stderr, flush=True)
    return found


def newest(folder: Path) -> Path | None:
    """`checkpoint.newest` of a run, without its warnings: training tells them itself."""
    with contextlib.redirect_stderr(io.StringIO()):
        return checkpoint.newest(folder / "checkpoints")


def fit_options(cfg: RunConfig, lr: float, stop_after: int | None) -> FitOptions:
    """`FitOptions` of a config at the rate ``lr``."""
    training, optim = asdict(cfg.training), asdict(cfg.optim)
    del training["default_epochs"], optim["lr"]
    schedule = optim.pop("schedule")
    return FitOptions(
        epochs=cfg.epochs,
        lr=lr,
        optimizer=optim,
        schedule=schedule,
        seed=cfg.seed,
        stop_after=stop_after,
        **training,
    )


def workers(choice: str | int, devices: int, source_in_memory: bool) -> int:
    """Loading processes a device: ``auto`` shares the cores, with none for images that lie in memory."""
    if choice != "auto":
        return int(choice)
    return 0 if source_in_memory else max(1, min(16, _cores() // devices))


def limit_threads(model: nn.Module, processes: int = 1) -> None:
    """CPU threads of this process: one for a small network (more lose by waiting for each other), else a fair share.

    ``OMP_NUM_THREADS`` in the environment wins.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        small = describe.count_parameters(model) < SMALL_NETWORK
        torch.set_num_threads(1 if small else max(1, _cores() // processes))


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // runs_at_once)


def write_config(plan: Plan, cfg: RunConfig) -> None:
    text = yaml.safe_dump(folders.run_config(cfg, plan), sort_keys=False)
    _write(plan.folder / "config.yaml", text)


def write_run(
    plan: Plan,
    cfg: RunConfig,
    command: str,
    model: nn.Module,
    grown: dict[str, Any],
    images: data.Dataset,
    gap: dict[str, float] | None = None,
    going_on: dict[str, Any] | None = None,
) -> None:
    """The folder of a run that is about to start: config.yaml, run.json, last the checkpoint of step 0.

    ``going_on``: what that checkpoint holds beside the weights.
    """
    if len(images.train) < cfg.training.batch_size:
        raise N2NError(
            f"{images.name}: {len(images.train)} training images are fewer than one batch "
            f"(training.batch_size={cfg.training.batch_size})"
        )
    info = {
        "format": 1,
        "command": command,
        "arm": plan.arm,
        "label": plan.label,
        "seed": plan.seed,
        "parameters": describe.count_parameters(model),
        "macs": describe.macs(model, images.image_size),
        "lr": cfg.optim.lr * plan.lr_scale,
        "lr_scale": plan.lr_scale,
        "epochs": plan.epochs,
        "lineage": grown,
        "function_gap": gap,
        "teacher": os.path.abspath(plan.teacher) if plan.teacher else None,
        "synthetic": images.synthetic,
        "data": images.name,
        "machine": machine(cfg),
    }
    write_config(plan, cfg)
    _write(plan.folder / "run.json", json.dumps(info, indent=1) + "\n")
    state = {
        "format": 1,
        "lineage": grown,
        "config": (plan.folder / "config.yaml").read_text(),
        "model": model.state_dict(),
        "step": 0,
        **(going_on or {}),
    }
    checkpoint.save(plan.folder / "checkpoints", state, step=0)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.atomic_write(path, text.encode())
    except OSError as error:
        raise N2NError(f"cannot write {path}: {error.strerror}") from error


def machine(cfg: RunConfig) -> dict[str, Any]:
    cuda = cfg.device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "devices": cfg.devices,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def prepared(plan: Plan) -> bool:
    """Whether the folder holds a run that only has to go on. Raises N2NError if it cannot, as it is damaged."""
    if not (plan.folder / "run.json").is_file():
        return False
    if newest(plan.folder) is not None:
        return True
    if any((plan.folder / "checkpoints").glob("step_*.pt")):
        raise N2NError(f"every checkpoint in {plan.folder} is damaged: remove the folder to train it anew")
    return False


def train(plan: Plan, cfg: RunConfig) -> dict[str, Any] | None:
    """Trains a prepared run to its end, in this process or on several devices; what done.json says.

    None: it was prepared only, or stopped by ``max_steps``. Raises N2NError, KeyboardInterrupt.
    """
    if plan.done:
        say(f"{plan.folder} is done: {_result(plan.done)}")
        return plan.done
    write_config(plan, cfg)  # devices and workers may be others than when it was prepared
    typed = functions(cfg)
    words = [str(plan.folder), *(f"model={name}" for name in typed)]
    if cfg.prepare_only:
        say(f"torchrun --nproc-per-node {cfg.devices} -m n2n_cli.commands.worker {' '.join(words)}")
        return None
    if cfg.devices > 1:
        try:
            launch("n2n_cli.commands.worker", words, cfg.devices)
        except KeyboardInterrupt:  # the ranks have saved; the agent only knows the signal's number
            raise KeyboardInterrupt("stopped; the same command goes on from there") from None
    else:
        from n2n_cli.commands import worker

        worker.train(plan.folder, typed)
    done = plan.done
    if done is None:
        say(f"{plan.folder} stopped after max_steps={cfg.max_steps}; the same command goes on from there")
        return None
    say(f"{plan.folder}: {_result(done)}, {done['time_s']:.0f} s")
    return done


def say(line: str) -> None:
    """To people, on stdout, at once (bars and plain progress go to stderr)."""
    print(line, flush=True)
    sys.stdout.flush()


def _result(done: dict[str, Any]) -> str:
    start, final, best = (done.get(key, {}).get("val/top1") for key in ("start", "final", "best"))
    shown = [
        f"{word} {100 * value:.2f} %" for word, value in (("start", start), ("final", final), ("best", best)) if value
    ]
    return f"top-1 {', '.join(shown)}" if shown else "finished"
