"""The gRPC front: `Front` is the server, `driven` marks the methods that its own thread begins.

`BoundedFront` is one that bounds the bytes of large messages by a `Budget`.
"""

from twinserve.server.front.bounded import BoundedFront
from twinserve.server.front.budget import Budget
from twinserve.server.front.call import Call, driven
from twinserve.server.front.server import Front, Refusals

__all__ = ["BoundedFront", "Budget", "Call", "Front", "Refusals", "driven"]
