"""Which twins are served: loaded, named, swapped and tried while calls go on.

`holding` is what every call asks, `table` the names, `changes` what an operator does to them,
`loading` from a file to a warm engine, `records` what a restart remembers, `shadow` a candidate
that sees live traffic.
"""
