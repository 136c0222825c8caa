"""Generated from proto/clusterkit/v1/ by proto/generate.py; do not edit."""
