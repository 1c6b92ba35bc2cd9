"""The serving benchmarks: how near the server comes to the limit of onnxruntime, and to its peers.

    .venv/bin/python -m benchmarks.serving --minilm minilm.onnx --minilm-int8 minilm.int8.onnx

One run measures everything that its figures are made of: the raw limit, bare servers, peers and
ours take turns on one machine, A B A B, and every figure in the table is a ratio of two of them.
`subjects` makes the twins, `servers` runs what is measured, `limit` is raw onnxruntime, `h2load`
and `wire` put the load on, `rows` holds one question a module, `figures` the arithmetic.
"""
