"""twinserve: are these two alike, and who is this closest to, as a service.

The ground floor (manifest, preprocess, distance, calibration, decision, errors, client) needs
neither torch nor onnxruntime; `train`, `export`, `server` and `cli` are the floors above it.
"""

__version__ = "0.1.0"
