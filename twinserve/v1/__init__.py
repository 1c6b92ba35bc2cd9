"""Generated from protos/twinserve/v1 by tools/stubs; do not edit."""
