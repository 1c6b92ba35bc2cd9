"""pyarrow, imported with the first Parquet file that is touched: it is an extra."""

from __future__ import annotations

import importlib
from typing import Any

from twinserve.errors import ConfigError


def arrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Parquet files need the package pyarrow; install it: pip install 'twinserve[parquet]'"
        ) from error
