"""twinserve: are these two alike, and who is this closest to, as a service.

The ground floor (manifest, preprocess, distance, calibration, decision, errors, client) needs
neither torch nor onnxruntime; `train`, `export`, `server` and `cli` are the floors above it.
"""

import os

__version__ = "0.1.0"

# onnxruntime's packages send usage data to their maker, and keep a device id in the home folder,
# unless this is set before they are imported. Set it to 0 to let them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
