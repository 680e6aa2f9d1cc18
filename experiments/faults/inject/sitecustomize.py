"""A fault inside a command, from ``N2N_INJECT``; Python imports this at its start when it is on PYTHONPATH.

write:N            SIGKILL in the N-th write of a checkpoint or record, half of it written
fsync:N, replace:N SIGKILL just before the N-th of them
pause:N            checkpoints take two seconds from the N-th on, and say so
hang:N             the N-th batch of each data worker takes an hour
kill_worker:N      ... kills the data worker
loss:N, rank:N     the loss of step N is not a number: on every rank, on rank 1 alone
"""

import importlib.util
import os
import signal
import sys
import time

kind, _, number = os.environ.get("N2N_INJECT", "").partition(":")
left = int(number or 0)


def hit():
    global left
    left -= 1
    return left == 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write(handle, data, *, whole=os.write):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
    if name.startswith(".tmp-") and hit():
        whole(handle, bytes(data[: len(data) // 2]))
        die()
    return whole(handle, data)


def deadly(function):
    def instead(*words, **more):
        if hit():
            die()
        return function(*words, **more)

    return instead


def in_worker(module):
    from torch.utils.data import get_worker_info

    fetch = module._Batches.fetch
    module.TIMEOUT_S = 10

    def instead(self, *words):
        if get_worker_info() and hit():
            die() if kind == "kill_worker" else time.sleep(3600)
        return fetch(self, *words)

    module._Batches.fetch = instead


def slow_saves(module):
    save = module.save

    def instead(*words, **more):
        global left
        left -= 1
        if left <= 0:
            print("n2n: saving", file=sys.stderr, flush=True)
            time.sleep(2)
        return save(*words, **more)

    module.save = instead


def no_number(module):
    import torch

    step = module.Run.optimizer_step

    def instead(self, images, labels):
        if self.step + 1 == left and (kind == "loss" or self.ranks.rank == 1):
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return step(self, images, labels)

    module.Run.optimizer_step = instead


class Finder:
    """Changes a module of n2n right after its import."""

    def find_spec(self, name, path=None, target=None):
        if name != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(made):
            run(made)
            change(made)

        spec.loader.exec_module = exec_module
        return spec


if kind == "write":
    os.write = write
elif kind in ("fsync", "replace"):
    setattr(os, kind, deadly(getattr(os, kind)))
elif kind:
    module, change = {
        "pause": ("n2n_cli.training.checkpoint", slow_saves),
        "hang": ("n2n_cli.data.loaders", in_worker),
        "kill_worker": ("n2n_cli.data.loaders", in_worker),
        "loss": ("n2n_cli.training.state", no_number),
        "rank": ("n2n_cli.training.state", no_number),
    }[kind]
    sys.meta_path.insert(0, Finder())
