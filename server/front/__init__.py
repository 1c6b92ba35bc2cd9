"""The gRPC front: `Front` is the server, `driven` marks the methods that its own thread begins."""

from twinserve.server.front.call import Call, driven
from twinserve.server.front.server import Front, Refusals

__all__ = ["Call", "Front", "Refusals", "driven"]
