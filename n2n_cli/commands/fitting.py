"""Starts the training of a run whose folder is written: in this process, or as one process a device."""

from __future__ import annotations

from typing import Any

from n2n_cli.commands import prepare, worker
from n2n_cli.commands.folders import Plan
from n2n_cli.config import functions
from n2n_cli.schema import RunConfig
from n2n_cli.training.launch import launch


def fit_run(plan: Plan, cfg: RunConfig) -> dict[str, Any] | None:
    """Trains a prepared run to its end; what its done.json says.

    None: it was to be prepared only, or stopped by ``max_steps``. Raises N2NError, KeyboardInterrupt.
    """
    if plan.done:
        print(f"{plan.folder} is done: {_result(plan.done)}", flush=True)
        return plan.done
    prepare.write_config(plan, cfg)  # devices and workers may be others than when it was prepared
    typed = functions(cfg)
    words = [str(plan.folder), *(f"model={name}" for name in typed)]
    if cfg.prepare_only:
        print(f"torchrun --nproc-per-node {cfg.devices} -m {worker.__name__} {' '.join(words)}", flush=True)
        return None
    if cfg.devices > 1:
        try:
            launch(worker.__name__, words, cfg.devices)
        except KeyboardInterrupt:  # the ranks have saved; the agent only knows the signal's number
            raise KeyboardInterrupt("stopped; the same command goes on from there") from None
    else:
        worker.fit_folder(plan.folder, typed)
    done = plan.done
    if done is None:
        print(f"{plan.folder} stopped after max_steps={cfg.max_steps}; the same command goes on from there", flush=True)
        return None
    print(f"{plan.folder}: {_result(done)}, {done['time_s']:.0f} s", flush=True)
    return done


def _result(done: dict[str, Any]) -> str:
    top1 = {word: done.get(word, {}).get("val/top1") for word in ("start", "final", "best")}
    shown = [f"{word} {100 * value:.2f} %" for word, value in top1.items() if value]
    return f"top-1 {', '.join(shown)}" if shown else "finished"
