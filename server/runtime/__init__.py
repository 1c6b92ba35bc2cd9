"""onnxruntime and the hardware under it: the only package that opens sessions and runs graphs.

`runner` is what the rest of the server sees: rows in, embeddings out. `providers` and `sessions`
are strict about where it runs; `machine` tells what there is; `planning` and `measuring` choose
runners and threads; `gpu` and `buckets` serve cards; `examining`, `advice` and `diagnosis` are the
doctor's.
"""
