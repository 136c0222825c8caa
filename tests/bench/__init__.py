"""Hooks as ratios: what the kit costs beside the plainest code that does the same, in one run."""
