"""Worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings


def end_with_parent() -> None:
    """Ends this worker process when its parent is gone: a parent that is killed cannot tell its workers, which would go on or wait
    for ever. To be called once, at the start of the worker."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def prepare_worker() -> None:
    """First thing in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()
    warnings.simplefilter("ignore")  # the libraries' remarks would tear the progress bar apart
