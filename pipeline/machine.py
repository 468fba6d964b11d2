"""Names the machine on which something was measured."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from pipeline.tasks import cpu_count


def machine(gpu: str | None = None) -> dict[str, Any]:
    """Return CPU, cores that this process may use, GPU, and versions of PyTorch and Python. gpu: name of the one that is used."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
