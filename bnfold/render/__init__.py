"""Reports in forms that people and machines read: `text`, `as_json`, and the table of `reasons`."""

from __future__ import annotations

import json
import math
from typing import Any

from ..report import Report, as_dict


def as_json(report: Report) -> str:
    """The report as JSON, in the order of its fields; numbers that JSON does not have become null."""
    return json.dumps(_finite(as_dict(report)), indent=2, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
