"""Samples a part of the candidates (``generation.shard``), and checks the parts before they are put together.

Parts split the first round of ``sample_until_enough``: candidate k of it belongs to part k mod n + 1. The sheet of a candidate
depends on seed and number alone, so that the run that merges finds the sheets that it would have sampled. It samples the further
rounds, and selects among all candidates.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from generation.batch import Denoiser
from generation.candidates import Plan, SampleStore, sample_candidates
from pipeline.errors import StageError
from pipeline.files import atomic_path, relative_name
from pipeline.settings import Config
from pipeline.shards import FOLDER, MERGE, Shard
from pipeline.tasks import Processes

ELEMENTS = "elements.jsonl"  # of the partial results
MOST_NAMED = 5


def sample_part(
    model: Denoiser,
    plans: Sequence[Plan],
    cfg: Config,
    store: SampleStore,
    device: Any,
    shard: Shard,
    workers: Processes | None = None,
) -> None:
    """Sample the plans of one part, and print what comes next.

    Args:
        model, cfg, device, workers: as for ``sample_candidates``.
        plans: of the whole first round.
        store: of this part.
        shard: which part.
    """
    own = [plan for plan in plans if shard.has_index(plan.index)]
    sample_candidates(model, own, cfg, store, device, workers)
    print(f"shard {shard}: its {len(own)} of {len(plans)} candidates are sampled; after the last part: {MERGE}/{shard.count}")


def take_elements(shard: Shard, root: Path, path: Path) -> None:
    """Copy the elements drawn by the first part that has some, which are those of all, to ``path`` where there are none."""
    found = next((p for part in shard.parts() if (p := part.folder(root) / ELEMENTS).is_file()), None)
    if found is not None and not path.exists():
        with atomic_path(path) as temporary:
            shutil.copyfile(found, temporary)


def check_parts(shard: Shard, root: Path, plans: Sequence[Plan], store: SampleStore) -> None:
    """Check that the parts have every candidate of the first round.

    Args:
        shard: the run that merges.
        root: folder of the stage.
        plans: of the first round.
        store: with the sheets of all parts.

    Raises:
        StageError: a part lacks candidates, or sampled others than this run plans.
    """
    problems = []
    for part in shard.parts():
        own = [plan for plan in plans if part.has_index(plan.index)]
        lacking = sum(plan.index not in store.sheets for plan in own)
        if lacking:
            there = "" if part.folder(root).is_dir() else f", no folder {relative_name(part.folder(root))}"
            problems.append(f"shard {part} lacks {lacking} of {len(own)} candidates{there}")
        elif any(
            _composition(store, plan) != sorted(plan.start.atomic_numbers if plan.start else plan.atomic_numbers) for plan in own
        ):
            problems.append(f"shard {part} sampled other compositions: its recipes came out otherwise on its machine")
    if problems:
        more = f" and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise StageError(f"{'; '.join(problems[:MOST_NAMED])}{more}: run these parts with the settings of this run")


def _composition(store: SampleStore, plan: Plan) -> list[int]:
    """Return the sorted atomic numbers of a stored sheet."""
    return sorted(store.sheets[plan.index].atomic_numbers)


def remove_parts(shard: Shard, root: Path) -> None:
    """Delete the folders of the parts, whose sheets are in the products."""
    for part in shard.parts():
        shutil.rmtree(part.folder(root), ignore_errors=True)
    with suppress(OSError):  # there may be parts of another split
        (root / FOLDER).rmdir()
