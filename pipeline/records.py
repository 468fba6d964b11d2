"""Dataclasses from the dictionaries that JSON holds of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

Record = TypeVar("Record")


def from_json(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Make a dataclass from its dictionary as JSON has it.

    Null stands for a missing number (NaN) in a field of floats. Keys that are no field are left out.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(kind)}
    return kind(**{key: math.nan if v is None and kinds[key] == "float" else v for key, v in values.items() if key in kinds})
