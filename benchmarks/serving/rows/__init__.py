"""One question about the server a module; each puts lines into the report."""
