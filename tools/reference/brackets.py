"""Shows `[a-z][0-9]` of a docstring as it stands: in Markdown it would be a link."""

from __future__ import annotations

from typing import Any

import griffe


class Brackets(griffe.Extension):
    """Puts a backslash between a bracket that closes and one that opens."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of what griffe has just read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("][", "]\\[")
