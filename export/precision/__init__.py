"""Other precisions of an fp32 graph: fp16 for GPUs, int8 for CPUs, each only if its gate passes."""

from twinserve.export.precision.lowering import lower

__all__ = ["lower"]
