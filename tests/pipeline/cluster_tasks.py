"""Tasks for the tests of the cluster. Workers import this file, so it imports little."""

from __future__ import annotations

import os
import signal
import time


def counting(folder):
    """Leaves a file for every process that makes it."""
    (folder / str(os.getpid())).touch()
    return 10


def product(shared, number):
    return {"value": shared * number}


def square(number):
    return {"value": number**2}


def fail(number):
    raise ZeroDivisionError(f"task {number}")


def no_model():
    raise ValueError("the weights\nare not there")


def about_worker(number):
    time.sleep(0.05)
    return {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


def deadly(folder, number):
    """Ends its process by SIGKILL for number 2 every time, for number 4 the first time."""
    first = folder / str(number)
    if number == 2 or (number == 4 and not first.exists()):
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return {"value": number**2}


def slow(number):
    time.sleep(3)
    return {"value": number}
