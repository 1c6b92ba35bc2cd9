"""report.html: one page about a run that opens anywhere, without a network and without scripts.

In: a run, its report classes with their embeddings, and what was measured on them. Out: one file
with its style, charts (SVG) and pictures (data URIs) inside. `page` puts it together; all text goes
through `markup`, which escapes it, since class names and texts are the data's own.
"""
