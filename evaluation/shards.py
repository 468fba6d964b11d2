"""Judges a part of the candidates (``evaluation.shard``), and puts the parts together.

A part has a folder of its own with the same files: its store of judged candidates, from which it goes on, ``metrics.csv`` and
``relaxed.extxyz``. What needs all candidates, such as uniqueness, the metrics and the report, is made by the run that merges: it
takes the stores over and is then a run whose candidates have all been judged.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.evaluate import Evaluation, content_key
from evaluation.judge_pool import record_store
from evaluation.near_hull import QUESTIONS, answers_store
from evaluation.reading import Source
from pipeline.errors import StageError
from pipeline.files import relative_name, write_json
from pipeline.settings import EvaluationConfig
from pipeline.shards import MERGE, Shard

ENDED = "shard.json"  # written at the end of a part
MOST_NAMED = 5
Sets = Mapping[str, Sequence[Source]]  # label -> structures


def of_part(sources: Sequence[Source], shard: Shard) -> list[Source]:
    """Return the structures of one part, by their names."""
    return [source for source in sources if shard.has_name(source.name)]


def settings_of_part(settings: EvaluationConfig) -> EvaluationConfig:
    """Return the settings by which a part is judged: which candidates come first is known to the run that merges alone."""
    return dataclasses.replace(settings, all_sites=0)


def judge_part(shard: Shard, sets: Sets, judge: Callable[..., Evaluation], settings: EvaluationConfig, root: Path) -> None:
    """Judge one part of every set in the folder of the part, and print what comes next.

    Args:
        shard: which part.
        sets: all structures.
        judge: ``evaluate`` without ``output_dir``, ``label``, ``cache_dir`` and ``sources``; its keyword ``judges`` is set.
        settings: limits and switches of the evaluation.
        root: folder of the stage.
    """
    folder = shard.folder(root)
    (folder / ENDED).unlink(missing_ok=True)
    counts, lost = {}, []
    for number, (label, sources) in enumerate(sets.items()):
        own = of_part(sources, shard)
        place = folder / "controls" / label.replace(" ", "_") if number else folder
        found = judge(output_dir=place, label=label, cache_dir=folder / "cache", sources=own)
        counts[label] = {"judged": len(own), "of": len(sources)}
        lost += [source.name for source in _lacking(own, found.identity, settings, folder)]
    write_json(folder / ENDED, {"shard": str(shard), "candidates": counts, "not_judged": lost})
    first = next(iter(counts.values()))
    print(f"shard {shard}: its {first['judged']} of {first['of']} candidates are judged, in {relative_name(folder)}")
    print(f"  after the last part: evaluation.shard={MERGE}/{shard.count}")


def take_parts(shard: Shard, sets: Sets, identity: Mapping[str, Any], settings: EvaluationConfig, root: Path) -> None:
    """Take what the parts have judged into the store of the stage.

    Args:
        shard: the run that merges.
        sets: all structures.
        identity: of the judges.
        settings: limits and switches of the evaluation.
        root: folder of the stage.

    Raises:
        StageError: a part has not ended or lacks candidates; the message names both.
    """
    problems = [problem for part in shard.parts() if (problem := _problem(part, sets, identity, settings, root))]
    if problems:
        more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise StageError(f"{'; '.join(problems[:MOST_NAMED])}{more}: run these parts with the settings of this run")
    for part in shard.parts():
        cache = part.folder(root) / "cache"
        record_store(root / "cache").take_over(cache)
        for question in QUESTIONS:
            answers_store(question, root / "cache").take_over(cache / question)


def _problem(part: Shard, sets: Sets, identity: Mapping[str, Any], settings: EvaluationConfig, root: Path) -> str:
    """Say what a part lacks; empty where it is complete."""
    folder = part.folder(root)
    if not folder.is_dir():
        return f"shard {part} has no folder {relative_name(folder)}"
    ended = _ended(folder)
    lacking = partial(_lacking, identity=identity, settings=settings, folder=folder)
    for label, sources in sets.items():
        own = of_part(sources, part)
        # Candidates that take their worker along have no record; the run that merges tries them once more.
        names = [source.name for source in lacking(own) if source.name not in (ended or {}).get("not_judged", [])]
        if names:
            rest = ", ..." if len(names) > MOST_NAMED else ""
            return f"shard {part} lacks {len(names)} of {len(own)} candidates ({label}: {', '.join(names[:MOST_NAMED])}{rest})"
    return "" if ended is not None else f"shard {part} has not ended"


def _ended(folder: Path) -> dict[str, Any] | None:
    """Return what a part has written at its end; None where it has not ended."""
    try:
        content = json.loads((folder / ENDED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _lacking(sources: Sequence[Source], identity: Mapping[str, Any], settings: EvaluationConfig, folder: Path) -> list[Source]:
    """Return the structures of which the store of a part has no record."""
    store = record_store(folder / "cache")
    return [source for source in sources if source.cif and content_key(source.cif, identity, settings) not in store]
