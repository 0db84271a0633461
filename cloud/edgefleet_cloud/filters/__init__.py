"""The one filter language: list filters, groups and wave selectors are written in it.

    labels.site == "berlin" and labels.hw in ("rpi5", "nano") and not id == "cam-3"

| form | meaning |
|---|---|
| `f == v`, `f != v` | equal, not equal; `!=` is `not ==`, so it holds where `f` is missing |
| `f < v`, `<=`, `>`, `>=` | order: numbers by value, times by time, text by code point |
| `f in (v, ...)`, `f not in (v, ...)` | one of |
| `f like "cam-*"`, `f not like ...` | `*` stands for any text; nothing else is special |
| `exists(f)` | the field has a value |
| `not`, `and`, `or`, `( )` | in this order of strength |

Every comparison with a missing field is false, and logic has two values, never three. `parse` gives
a tree; `matches` evaluates it in Python and `condition` compiles it to SQL, with one meaning.
"""

from edgefleet_cloud.filters.errors import FilterError
from edgefleet_cloud.filters.evaluate import matches
from edgefleet_cloud.filters.fields import Kind, Schema
from edgefleet_cloud.filters.parser import parse
from edgefleet_cloud.filters.sql import condition
from edgefleet_cloud.filters.tree import Node, render

__all__ = ["FilterError", "Kind", "Node", "Schema", "condition", "matches", "parse", "render"]
