"""The gallery benchmarks: how near a search comes to raw hnswlib, and to other vector stores.

    .venv/bin/python -m benchmarks.gallery --peers runs/gallery-peers

One run measures everything that its figures are made of: raw indexes, ours in process, ours through
its server and other stores through their own clients take turns on one machine over the same items
and probes, at matched recall, and every speed has its recall beside it. `data` makes or reads the
embeddings, `workers` runs what is measured in processes of their own, `engines` are the indexes,
`served` our server, `peers` the other stores, `rows` holds one question a module.
"""
