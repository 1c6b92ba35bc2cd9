"""The versions of everything that twinserve writes to disk, in one place.

Each is read by the module that writes it; a version is raised with the code that reads the one
before it. `twinserve --version` shows them.
"""

from __future__ import annotations

MANIFEST = (1, 1)  # of the document in a twin file: major, minor
CATALOG = 3  # catalog.db of a data folder
GALLERY = 2  # store.db of a gallery
SNAPSHOT = 1  # the cache of a gallery's index
EXPORT = 1  # a gallery's folder of Parquet files
