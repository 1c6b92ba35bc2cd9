"""The gRPC front: `Front` is the server, `driven` marks the methods that its own thread begins.

What bounds the bytes of its large messages is a `Budget`.
"""

from twinserve.server.front.budget import Budget
from twinserve.server.front.call import Call, driven
from twinserve.server.front.server import Admit, Front, Refusals

__all__ = ["Admit", "Budget", "Call", "Front", "Refusals", "driven"]
