"""The data folder: its lock, and catalog.db, which galleries and models share."""
