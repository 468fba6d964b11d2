"""The one split by formula: the same side for every model, whatever the spelling."""

import dataclasses
import hashlib
import itertools
from types import SimpleNamespace

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.formula import Formula
from pymatgen.core import Composition

import material_dataset
from crystals import database
from energetics import adsorption_data, record_index
from evaluation import synth_examples
from pipeline.settings import Config, DatasetConfig, DimenetConfig

# With carbon or hydrogen after other letters of the alphabet, where the spellings differ.
FORMULAS = ["MoS2", "BC", "AgCN", "Al2C", "Br2CaH4O2", "BiH", "CF", "CH", "GeH", "WSe2", "Ti3C2", "Bi2Te3", "O", "BN"]


def alphabetic(formula):
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in sorted(Formula(formula).count().items()))


@pytest.mark.parametrize("formula", FORMULAS)
def test_spellings_and_multiples_of_a_composition_have_one_key(formula):
    spelt = {formula, alphabetic(formula), str(Formula(formula).format("hill")), str(Formula(formula).format("metal"))}
    spelt |= {Composition(formula).reduced_formula, Composition(formula).hill_formula.replace(" ", "")}
    spelt |= {str(Formula(formula) * 3), "".join(Formula(formula) * 2)}
    assert len({database.formula_key(text) for text in spelt}) == 1
    assert Composition(database.formula_key(formula)).reduced_formula == Composition(formula).reduced_formula


def test_compositions_with_other_proportions_have_other_keys():
    keys = {database.formula_key(f"Mo{i}S{j}") for i, j in itertools.product(range(1, 5), repeat=2)}
    assert len(keys) == 11, "the pairs below 5 without a common divisor"


def side_by_hand(formula, seed, val_fraction, test_fraction):
    """The rule written out: first 8 bytes of SHA-256 of "seed:key", little-endian, as a share of 2^64."""
    symbols = Formula(formula).count()
    divisor = np.gcd.reduce(list(symbols.values()))
    ordered = sorted(symbols, key=lambda symbol: ({"C": 0, "H": 1}.get(symbol, 2), symbol))
    key = "".join(symbol + (str(symbols[symbol] // divisor) if symbols[symbol] > divisor else "") for symbol in ordered)
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    share = sum(byte * 256**place for place, byte in enumerate(digest[:8])) / 256**8
    return "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"


@pytest.fixture(scope="module")
def many():
    """2,000 formulas of four elements."""
    rng = np.random.default_rng(0)
    symbols = ["C", "H", "Al", "B", "Br", "Mo", "O", "S", "Ag", "Te"]
    made = set()
    while len(made) < 2000:
        chosen = rng.choice(symbols, 4, replace=False)
        made.add(database.formula_key("".join(f"{s}{n}" for s, n in zip(chosen, rng.integers(1, 9, 4), strict=True))))
    return sorted(made)


def test_shares_of_the_split_are_the_fractions(many):
    for seed, (val_fraction, test_fraction) in enumerate([(0.1, 0.1), (0.05, 0.25), (0.3, 0.02)]):
        sides = [database.split_of(key, seed, val_fraction, test_fraction) for key in many]
        assert sides == [side_by_hand(key, seed, val_fraction, test_fraction) for key in many]
        for name, share in (("val", val_fraction), ("test", test_fraction)):
            # Four standard deviations of a binomial share.
            assert sides.count(name) / 2000 == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)
    first, second = ([database.split_of(key, seed, 0.1, 0.1) for key in many] for seed in (0, 1))
    both = sum(a != "train" and b != "train" for a, b in zip(first, second, strict=True))
    assert both / 2000 == pytest.approx(0.04, abs=0.018), "another seed draws independently"


def test_a_small_set_has_a_formula_on_every_side(many):
    learnt = [key for key in many if database.split_of(key, 0, 0.1, 0.1) == "train"]
    for start in range(0, 300, 3):
        sides = database.split_formulas(learnt[start : start + 3], 0, 0.1, 0.1)
        assert sorted(sides.values()) == ["test", "train", "val"]
    large = database.split_formulas(many, 0, 0.1, 0.1)
    assert large == {key: database.split_of(key, 0, 0.1, 0.1) for key in many}
    assert set(database.split_formulas(many, 0, 0.0, 0.1, least_val=0).values()) == {"train", "test"}


def test_three_models_put_a_formula_on_the_same_side(tmp_path, many):
    """Rows of a database as stage 2 and the synthesizability model read them, and records as DimeNet++ reads them."""
    chosen = [*map(database.formula_key, FORMULAS), *many[:80]]
    with ase.db.connect(tmp_path / "rows.db") as db:
        for key in chosen:
            atoms = Atoms(str(Formula(key) * 2))
            atoms.set_cell([3.0 * len(atoms), 3.0, 20.0])
            atoms.positions[:, 0] = 3.0 * np.arange(len(atoms))
            db.write(atoms, key_value_pairs={"ehull": 0.0})
    config = dataclasses.replace(Config(), synth_lm=dataclasses.replace(Config().synth_lm, db_path=str(tmp_path / "rows.db")))
    settings = DatasetConfig()
    stage2 = [SimpleNamespace(formula=database.formula_key(alphabetic(key))) for key in chosen]
    sheets = {row.formula: side for side, rows in material_dataset.split_rows(stage2, settings, 0).items() for row in rows}
    entries = []
    for key in chosen:
        record = SimpleNamespace(extra={"bulk_formula": alphabetic(str(Formula(key) * 2))})
        entries.append(adsorption_data.Entry(0, 0, 0.0, record_index.reduced_formula(record), "x", 3, (1,)))
    split = adsorption_data.split_by_formula(entries, DimenetConfig(), 0)
    records = {entries[number].formula: side for side, numbers in split.items() for number in numbers}
    examples, _ = synth_examples.read_examples(config)
    assert {example.formula for example in examples} == set(chosen)
    assert sheets == records == {example.formula: example.split for example in examples}
    assert set(sheets.values()) == {"train", "val", "test"}
