"""Generated from protos/twinserve/oip by tools/stubs; do not edit."""
