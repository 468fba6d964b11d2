"""Makes training examples for the embedded language model from a database of monolayers."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from crystals import database
from evaluation import material_strings
from pipeline.errors import StageError
from pipeline.files import relative_name
from pipeline.provenance import SCHEMA_VERSION
from pipeline.settings import Config
from pipeline.store import LineStore

IGNORE = -100  # target that torch's cross-entropy leaves out


@dataclasses.dataclass
class Example:
    """One labelled crystal. ``label``: 0 or 1. ``strings``: equivalent material strings; the first is of the sheet as it is."""

    row_id: int
    formula: str
    label: int
    strings: list[str]
    split: str = ""


def side_of(formula: str, cfg: Config) -> str:
    """Return "train", "val" or "test" for a formula key, in the same split as that of the generator's dataset."""
    return database.split_of(formula, cfg.run.seed, cfg.dataset.val_fraction, cfg.dataset.test_fraction)


def select_rows(cfg: Config) -> tuple[list[tuple[int, str, int]], Counter]:
    """Read the labelled rows of the database.

    Returns:
        ((row id, formula key, label) in row order, reason -> number of rows left out).

    Raises:
        StageError: the file is no ASE database.
    """
    import ase.db

    path = Path(cfg.synth_lm.db_path)
    counts: Counter = Counter()
    rows = []
    try:
        with ase.db.connect(str(path)) as db:
            for row in tqdm(db.select(), total=len(db), desc="labels", unit="row", leave=False):
                counts["rows"] += 1
                label = database.synth_label(
                    row.key_value_pairs, cfg.dataset.synth_e_hull_max_ev, cfg.dataset.unsynth_e_hull_min_ev
                )
                if math.isnan(label):
                    counts["unlabelled"] += 1
                else:
                    rows.append((int(row.id), database.formula_key(row.formula), int(label)))
    except Exception as error:  # ase raises sqlite3, JSON and plain assertion errors for files that are no ASE database
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise StageError(f"{relative_name(path)} is not a readable ASE database ({reason})") from error
    if cfg.synth_lm.max_rows and len(rows) > cfg.synth_lm.max_rows:
        chosen = np.random.default_rng(cfg.run.seed).choice(len(rows), cfg.synth_lm.max_rows, replace=False)
        counts["not drawn (synth_lm.max_rows)"] = len(rows) - cfg.synth_lm.max_rows
        rows = [rows[index] for index in sorted(chosen)]
    return rows, counts


def labelled_examples(cfg: Config, rows: list[tuple[int, str, int]], db_hash: str, counts: Counter) -> list[Example]:
    """Make the material strings of the rows: one of the sheet as it is, and synth_lm.augmentations - 1 in other settings.

    They are stored line by line in ``strings.jsonl`` beside the checkpoint, so that a stopped run goes on where it was.

    Args:
        rows: what ``select_rows`` returns.
        db_hash: SHA-256 of the database; strings of another one are not used.
        counts: gets reason -> number of rows without a string.
    """
    import ase.db

    path = Path(cfg.synth_lm.checkpoint).parent / "strings.jsonl"
    header = {"schema_version": SCHEMA_VERSION, "db": db_hash}
    header |= {"augmentations": cfg.synth_lm.augmentations, "seed": cfg.run.seed}
    cached = LineStore(path, header, pack=lambda row_id, strings: [row_id, strings], unpack=_cached_strings)
    missing = [row for row in rows if row[0] not in cached]
    if missing:
        with ase.db.connect(cfg.synth_lm.db_path) as db:
            for row_id, _, _ in tqdm(missing, desc="material strings", unit="row", mininterval=1):
                cached.add(row_id, _strings_of(db.get(id=row_id).toatoms(), row_id, cfg.synth_lm.augmentations, cfg.run.seed))
    examples = []
    for row_id, formula, label in rows:
        strings = cached[row_id]
        if not strings or strings[0].startswith("!"):
            counts[strings[0][1:] if strings else "no string"] += 1
            continue
        examples.append(Example(row_id, formula, label, strings, side_of(formula, cfg)))
    return examples


def _strings_of(atoms: Any, row_id: int, number: int, seed: int) -> list[str]:
    """Return the strings of one row, or one entry that starts with '!' and says why it has none."""
    try:
        structure = material_strings.as_structure(atoms)
        first = material_strings.material_string(structure)
    except ValueError as error:
        return [f"!no material string: {error}"]
    if not first.is_sheet:
        return ["!not 2D"]
    boxed, _ = material_strings.standard_box(structure)
    rng = np.random.default_rng([seed, row_id])
    texts = [first.text]
    for _ in range(number - 1):
        texts.append(material_strings.material_string(material_strings.equivalent_sheet(boxed, rng)).text)
    return list(dict.fromkeys(texts))


def _cached_strings(entry: list[Any]) -> tuple[int, list[str]]:
    """Return (row id, strings) of a line of the cache; raises ValueError or TypeError for one that is damaged."""
    row_id, strings = entry
    if not all(isinstance(text, str) for text in strings):
        raise TypeError("no strings")
    return int(row_id), strings


class Encoder:
    """Encoder of examples as token ids, kept as head of the prompt, one block per Wyckoff site, and tail before the label.

    Sites are kept apart so that every epoch can draw them in another order.
    """

    def __init__(self, tokenizer: material_strings.MaterialTokenizer, examples: list[Example]) -> None:
        self.tokenizer = tokenizer
        self.parts = [[self._split(text) for text in example.strings] for example in examples]

    def _split(self, text: str) -> tuple[list[int], list[list[int]]]:
        header, _, sites = text.rpartition("| ")
        ids = self.tokenizer.encode(f'Input: Can this material structure be synthesized "{header}|')
        return ids, [self.tokenizer.encode(site)[1:] for site in sites.split("->")]

    def prompt_ids(self, index: int, variant: int = 0, rng: np.random.Generator | None = None) -> tuple[list[int], slice]:
        """Return (token ids up to and including "Output:", the slice that holds the material string).

        Args:
            index: of the example.
            variant: which of its strings.
            rng: draws the order of the sites; None: the order of the string.
        """
        head, sites = self.parts[index][variant]
        order = range(len(sites)) if rng is None else rng.permutation(len(sites))
        body = [token for site in order for token in sites[site]]
        tail = [self.tokenizer.ids["\n"], self.tokenizer.ids["Output:"]]
        return head + body + tail, slice(3, len(head) + len(body))


def batches(lengths: list[int], batch_size: int, rng: np.random.Generator | None) -> list[list[int]]:
    """Put indices into batches of similar length.

    Args:
        lengths: number of tokens of each example.
        batch_size: examples of a batch.
        rng: shuffles the examples, which are then sorted by length within groups of 16 batches only; None: sorted as a whole.
    """
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    group = len(lengths) if rng is None else 16 * batch_size
    found = []
    for start in range(0, len(order), max(group, 1)):
        part = sorted(order[start : start + group], key=lambda index: lengths[index])
        found += [[int(i) for i in part[s : s + batch_size]] for s in range(0, len(part), batch_size)]
    return found if rng is None else [found[index] for index in rng.permutation(len(found))]


def collate(sequences: list[list[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad sequences on the right; return (ids (B, L), attention mask (B, L), index of the last token (B,))."""
    last = torch.tensor([len(ids) - 1 for ids in sequences])
    ids = torch.full((len(sequences), int(last.max()) + 1), pad_id)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    mask = (torch.arange(ids.shape[1])[None] <= last[:, None]).long()
    return ids.to(device), mask.to(device), last.to(device)
