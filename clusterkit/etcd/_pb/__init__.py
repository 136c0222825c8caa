"""Generated from proto/etcd/ by proto/generate.py; do not edit."""
