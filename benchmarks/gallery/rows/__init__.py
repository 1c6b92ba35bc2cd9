"""One question a module; each adds lines to the report of a stage."""
