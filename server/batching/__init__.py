"""From the rows of many calls to runs of the model: who enters, whose turn it is, what is run.

`admission` is the door, `turns` the order, `batcher` the threads, `costs` the measured table that
all three ask, `padding` how texts are cut into runs of like length. Safe from any thread.
"""
