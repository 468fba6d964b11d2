"""Labels of synthesizability from the keys of a database row."""

import math

import pytest

from crystals import database

STABLE = {"thermodynamic_stability_level": 3, "dynamic_stability_phonons": "high", "dynamic_stability_stiffness": "high"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"ehull": 0.05}, 1),
        ({"ehull": 0.051}, None),
        ({"ehull": 0.2}, None),
        ({"ehull": 0.201}, 0),
        ({}, None),
        ({"ehull": float("nan")}, None),
        ({"ehull": "high"}, None),
        ({"ehull": 0.5, "icsd_id": "id:22388"}, 1),
        ({"ehull": 0.5, "cod_id": 9013111, "dynamic_stability_phonons": "low"}, 1),
        ({"ehull": 0.5, "doi": "10.1126/science.1102896"}, 1),
        ({"ehull": 0.01, "doi": ""}, None),
        ({"ehull": 0.3, "icsd_id": "id:None", "thermodynamic_stability_level": 1}, 0),
        ({"ehull": 0.03, **STABLE}, 1),
        ({"ehull": 0.03, **STABLE, "dynamic_stability_stiffness": "low"}, 0),
        ({"ehull": 0.03, **STABLE, "thermodynamic_stability_level": 2}, None),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3}, None),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3, "dyn_stab": "Yes"}, 1),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3, "dyn_stab": "Unknown"}, None),
        ({"ehull": 0.01, "dyn_stab": "No"}, 0),
        ({"ehull": 0.25, "dyn_stab": "Yes"}, 0),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3, "dynamic_stability_level": 3}, 1),
        ({"ehull": 0.01, "thermodynamic_stability_level": "3", "dynamic_stability_level": 3.0}, 1),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3, "dynamic_stability_level": 2}, None),
        ({"ehull": 0.01, "thermodynamic_stability_level": 3, "dynamic_stability_level": 1}, 0),
        ({"ehull": 0.01, "dynamic_stability_level": 1}, 0),
        ({"ehull": 0.15, "thermodynamic_stability_level": 2, "dynamic_stability_level": 3}, None),
        ({"ehull": 0.25, "thermodynamic_stability_level": 1, "dynamic_stability_level": 3}, 0),
    ],
)
def test_labels(keys, expected):
    label = database.synth_label(keys, 0.05, 0.2)
    assert math.isnan(label) if expected is None else label == expected
