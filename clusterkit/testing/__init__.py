"""Helpers for tests of ClusterKit, and of what is built on it."""

from __future__ import annotations

from .embedded import EmbeddedEtcd

__all__ = ["EmbeddedEtcd"]
