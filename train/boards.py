"""Figures of a training for TensorBoard, in the run folder beside log.csv.

The package comes with the extra `tensorboard`; without `tensorboard=true` it is not imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinserve.errors import ConfigError


class Board:
    """Writes scalars to an event file.

    Args:
        folder: of the run.
        first_step: of a resumed training: what stands at later steps is taken back.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                "tensorboard is true, and the package is not installed; "
                "pip install 'twinserve[tensorboard]', or set tensorboard=false"
            )
        from torch.utils.tensorboard import SummaryWriter

        purge = first_step + 1 if first_step else None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write named scalars of one step; NaN, of what a batch did not have, is left out."""
        for name, value in scalars.items():
            if value == value:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
