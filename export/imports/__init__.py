"""Models made elsewhere, as twins: one module per kind, and `importer` that tells them apart.

Each kind brings an fp32 graph, the facts that a manifest needs, and the model as it was, so that
the gate can hold the one against the other. From there an import goes the way of a run.
"""
