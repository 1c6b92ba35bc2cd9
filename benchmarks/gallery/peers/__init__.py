"""Other stores of vectors, each in an environment of its own, asked through its own client.

A module each: it starts its server as a child, answers `start`, `fill`, `recall` and `rate` (see
`clients`), and is held still with it. Nothing of this project but the standard library's part of
the benchmarks is imported there.
"""
