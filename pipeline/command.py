"""Runs a stage or script by its name: the command ``her2d``, which an installation puts beside Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import PROJECT_DIR

STAGES = ("pretrain_dimenet", "material_dataset", "optimization", "structure_generator", "test", "evaluate_external")
SCRIPTS = ("prepare_demo_data", "pretrain_csllm", "benchmark_generator", "design_loop")
USAGE = f"""usage: her2d STAGE [--config config.yaml] [section.key=value ...]

Stages: {", ".join(STAGES)}.
Scripts: {", ".join(SCRIPTS)}.
her2d STAGE --help lists the settings of a stage. Judge your own sheets:

    her2d evaluate_external external.cif_dir=my_cifs external.name=mine
"""


def command_line(arguments: Sequence[str]) -> list[str] | None:
    """Return the command that a call of ``her2d`` stands for; None where it names no stage.

    Outside a checkout the stages write below the working folder and not beside the installed data.
    """
    name, rest = arguments[0].removesuffix(".py").replace("-", "_"), list(arguments[1:])
    if name in STAGES:
        program = [str(PROJECT_DIR / f"{name}.py")]
    elif name in SCRIPTS:
        program = ["-m", f"scripts.{name}"]
    else:
        return None
    is_checkout = Path(__file__).resolve().parent.parent == PROJECT_DIR
    if not is_checkout and not any(argument.startswith("--config") for argument in rest):
        rest.insert(0, f"run.output_dir={Path('results') / 'run'}")
    return [sys.executable, *program, *rest]


def main() -> int:
    """Run the stage in place of this process."""
    arguments = sys.argv[1:]
    command = command_line(arguments) if arguments and arguments[0] not in ("-h", "--help") else None
    if command is not None:
        os.execv(command[0], command)
    if arguments and arguments[0] not in ("-h", "--help"):
        print(f"her2d: there is no stage '{arguments[0]}'; see her2d --help", file=sys.stderr)
        return 2
    print(USAGE, end="")
    return 0
