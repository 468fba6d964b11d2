"""Runs a stage from the command line; chooses its device and sets its seeds."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sqlite3
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StageError
from pipeline.files import relative_name
from pipeline.loading import help_text, load_config, split_arguments
from pipeline.settings import Config, RunConfig
from pipeline.tasks import cpu_count


def run_stage(
    main: Callable[[Config], None],
    doc: str | None,
    sections: Sequence[str],
    argv: Sequence[str] | None = None,
    *,
    resumes_in: str = "run.output_dir",
) -> int:
    """Run a stage from the command line. A failure that the user can mend becomes one line.

    Args:
        main: the work of the stage.
        doc: what ``--help`` prints before the settings.
        sections: sections of the settings that the stage reads.
        argv: arguments; None: those of the process.
        resumes_in: setting that names the folder from which a stopped run goes on.

    Returns:
        The exit code: 0 done, 1 the stage could not do its work, 2 a setting cannot be used, 130 interrupted, 143
        terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0])
    script = f"-m scripts.{program.stem}" if program.parent.name == "scripts" else program.name or "stage"
    if "-h" in arguments or "--help" in arguments:
        with contextlib.suppress(BrokenPipeError):
            print(help_text(doc, sections).replace("STAGE.py", script), flush=True)
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    _silence_libraries()
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it reports every table of every font of a PDF
    config: Config | None = None
    try:
        config_path, overrides = split_arguments(arguments)
        config = load_config(config_path, overrides)
        with _terminated_as_interrupted():
            main(config)
    except ConfigError as error:
        print(f"{program.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"{program.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"{program.name}: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except sqlite3.OperationalError as error:  # a disk that is full or read-only, a database that is locked
        print(f"{program.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        was_terminated = isinstance(stop, _Terminated)
        section, _, name = resumes_in.partition(".")
        place = relative_name(getattr(getattr(config, section), name)) if config else "its folder"
        word = "terminated" if was_terminated else "interrupted"
        print(f"{program.name}: {word}; the same command goes on from what is finished in {place}", file=sys.stderr)
        return 143 if was_terminated else 130
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it before the end of the time."""


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that workers are ended and locks freed.

    Python drops what is raised in a destructor or in the callback of a weak reference. A signal that came there is sent again.
    """

    def stop(*_: Any) -> None:
        raise _Terminated

    def dropped(what: Any) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            report_dropped(what)
            return
        number = signal.SIGTERM if isinstance(what.exc_value, _Terminated) else signal.SIGINT
        again = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number])
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set what a signal does
        yield
        return
    before, report_dropped = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = report_dropped
        signal.signal(signal.SIGTERM, before)


def _silence_libraries() -> None:
    """Let no remark or preference meant for another program reach the libraries, in this process or those that it starts.

    Warnings of libraries, such as those about a future PyTorch, say nothing that a user could act on. Nor do those of Python about
    semaphores of a process that was killed. With PYTHONWARNINGS=error either would end the stage. The drawing backend of a notebook
    (MPLBACKEND) is not there outside of it.
    """
    sys.warnoptions.clear()
    warnings.simplefilter("ignore")
    os.environ |= {"PYTHONWARNINGS": "ignore", "MPLBACKEND": "Agg"}


def resolve_device(run: RunConfig) -> Any:
    """Return the ``torch.device`` of ``run.device`` and set the number of threads: ``run.threads``, or the CPUs of this process.

    Raises:
        ConfigError: PyTorch does not see that GPU.
    """
    import torch

    torch.set_num_threads(run.threads or cpu_count())
    if run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(run.device)
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f"run.device={run.device}: PyTorch sees no such GPU; use run.device=cpu")
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch. Only the initial weights rely on it; samplers take their own generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - ASE and pyxtal draw from the legacy generator
    torch.manual_seed(seed)
