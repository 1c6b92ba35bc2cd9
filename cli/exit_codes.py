"""The exit codes that scripts depend on."""

from __future__ import annotations

OK = 0  # done; of compare and verify: match; of health: serving
NO = 1  # some items failed; of compare and verify: no match; of health: not serving
FAULT = 2  # wrong usage or an error, as one sentence on standard error
NOT_CALIBRATED = 3  # of compare and verify: a distance, but no decision
INTERRUPTED = 130  # by Ctrl-C, as shells count it
