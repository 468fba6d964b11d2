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

from pipeline import torchrun
from pipeline.errors import ConfigError, OtherRankError, StageError
from pipeline.files import relative_name
from pipeline.heap import keep_freed_memory
from pipeline.loading import help_text, load_config, split_arguments
from pipeline.settings import Config, RunConfig
from pipeline.tasks import cpu_count, import_for_workers

WORKER_MODULES = ("torch", "ase.optimize", "pymatgen.core", "scipy.stats", "sklearn.ensemble")
POTENTIAL_MODULES = ("e3nn.o3", "sevenn.calculator")


def run_stage(
    main: Callable[[Config], None],
    doc: str | None,
    sections: Sequence[str],
    argv: Sequence[str] | None = None,
    *,
    resumes_in: str = "run.output_dir",
    under_torchrun: bool = False,
    workers_judge: Callable[[Config], bool] = lambda config: False,
) -> int:
    """Run a stage from the command line. A failure that the user can mend becomes one line.

    Args:
        main: the work of the stage.
        doc: what ``--help`` prints before the settings.
        sections: sections of the settings that the stage reads.
        argv: arguments; None: those of the process.
        resumes_in: setting that names the folder from which a stopped run goes on.
        under_torchrun: whether several processes may do the work together.
        workers_judge: whether its workers are those of section ``evaluation``; what these need is then imported once for all.

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
    _start_logging()
    config: Config | None = None
    try:
        if torchrun.is_used() and not under_torchrun:
            raise ConfigError("this stage is one process; start it without torchrun")
        config_path, overrides = split_arguments(arguments)
        config = load_config(config_path, overrides)
        if workers_judge(config):
            import_for_workers(_modules_of_judges(config))
        with _terminated_as_interrupted():
            main(config)
    except StageError as error:
        _say(program.name, str(error), error)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _say(program.name, f"{error.strerror or error}{where}", error)
        return 1
    except sqlite3.OperationalError as error:  # a disk that is full or read-only, a database that is locked
        _say(program.name, str(error), error)
        return 1
    except KeyboardInterrupt as stop:
        was_terminated = isinstance(stop, _Terminated)
        section, _, name = resumes_in.partition(".")
        place = relative_name(getattr(getattr(config, section), name)) if config else "its folder"
        word = "terminated" if was_terminated else "interrupted"
        _say(program.name, f"{word}; the same command goes on from what is finished in {place}", stop)
        return 143 if was_terminated else 130
    return 0


def _start_logging() -> None:
    """Let the stage speak, and libraries only where something is wrong."""
    logging.basicConfig(
        level=logging.INFO if torchrun.is_first() else logging.ERROR,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    _silence_libraries()
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it reports every table of every font of a PDF


def _modules_of_judges(config: Config) -> list[str]:
    """Return what workers that judge import, as far as they are processes of this machine."""
    if config.run.scheduler != "processes" or not config.evaluation.workers:
        return []
    return [*WORKER_MODULES, *(POTENTIAL_MODULES if config.evaluation.potential.startswith("sevennet") else ())]


def _say(program: str, message: str, error: BaseException) -> None:
    """Print why a stage ends in one line: once for each machine, where torchrun has started several processes that all know."""
    own = getattr(error, "of_one_rank", False)
    if isinstance(error, OtherRankError) or (torchrun.local_rank() > 0 and not own):
        return
    place = f"process {torchrun.rank()}: " if own else ""
    print(f"{program}: {place}{' '.join(message.split())}", file=sys.stderr)


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


def resolve_device(run: RunConfig, training: bool = False) -> Any:
    """Return the ``torch.device`` of ``run.device`` and set the number of threads: ``run.threads``, or the CPUs of this process.

    Under ``torchrun`` every process of a machine has its own GPU, and its share of the CPUs.

    Args:
        run: the settings.
        training: whether ``run.precision`` counts.

    Raises:
        ConfigError: PyTorch does not see that GPU, or ``run.precision`` needs one.
    """
    import torch

    keep_freed_memory()
    torch.set_num_threads(run.threads or max(1, cpu_count() // torchrun.local_world_size()))
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(run.device if run.device != "auto" else "cuda" if seen else "cpu")
    if device.type == "cuda" and torchrun.is_used():
        if device.index is not None:
            raise ConfigError(f"run.device={run.device}: torchrun gives each process its own GPU; use run.device=cuda")
        device = torch.device("cuda", torchrun.local_rank())
    if device.type == "cuda" and (device.index or 0) >= seen:
        name = device if torchrun.is_used() else run.device
        raise ConfigError(f"run.device={name}: PyTorch sees no such GPU; use run.device=cpu")
    if training and run.precision == "bf16" and device.type != "cuda":
        raise ConfigError("run.precision=bf16 is for GPUs; use run.precision=float32")
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch. Only the initial weights rely on it; samplers take their own generators."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - ASE and pyxtal draw from the legacy generator
    torch.manual_seed(seed)
