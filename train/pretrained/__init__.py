"""Models made elsewhere, read from their folders as twins in torch, to be imported or fine-tuned.

In: a folder of transformers or sentence-transformers, and what the user says. Out: a twin, and what
was taken for each question that the files leave open.
"""
