"""Sheets that have been made in a laboratory, and what the shipped model says of them."""

from types import SimpleNamespace

import ase.db
from ase.formula import Formula

from crystals.database import formula_key, split_of
from evaluation import laboratory
from evaluation.embedded_trees import EmbeddedTreesJudge

TEXTBOOK = ("C2-graphene", "BN-hBN", "MoS2-2H-MX2", "WS2-2H-MX2", "NbS2-2H-MX2", "TaS2-2H-MX2", "PtSe2-1T-MX2")
TEXTBOOK += ("Fe2Se2-FeSe", "P4-phosphorene")


def test_the_list_names_its_sources_and_every_sheet_is_in_the_embedded_database():
    rows = laboratory.laboratory_sheets()
    assert len(rows) >= 60 and len({row["uid"] for row in rows}) == len(rows)
    assert set(TEXTBOOK) <= {row["uid"] for row in rows}
    with ase.db.connect(str(laboratory.DATABASE)) as database:
        for row in rows:
            assert row["doi"].startswith("10.") or row["icsd"].isdigit() or row["cod"].isdigit(), row["uid"]
            assert formula_key(database.get(uid=row["uid"]).formula) == formula_key(row["formula"])


def test_the_shipped_model_recalls_what_has_been_made():
    judge = EmbeddedTreesJudge("weights/synth_lm.pth")
    found = laboratory.laboratory_recall(judge, lambda formula: split_of(formula, 0, 0.1, 0.1))
    assert found["recalled"] / found["n"] >= 0.85 and found["held_out_recalled"] / found["held_out_n"] >= 0.85
    assert not set(TEXTBOOK) & set(found["missed"])


def test_recall_counts_what_passes_and_what_was_held_out():
    def score(sheets):
        return [SimpleNamespace(p_synth=0.9 if "S" in sheet.get_chemical_symbols() else float("nan")) for sheet in sheets]

    rows = laboratory.laboratory_sheets()
    sulphur = {row["uid"] for row in rows if "S" in Formula(row["formula"]).count()}
    found = laboratory.laboratory_recall(SimpleNamespace(score=score), lambda formula: "val" if formula == "MoS2" else "train")
    assert found["recalled"] == len(sulphur) and set(found["missed"]) == {row["uid"] for row in rows} - sulphur
    moly = sum(row["formula"] == "MoS2" for row in rows)
    assert found["held_out_n"] == found["held_out_recalled"] == moly >= 2
