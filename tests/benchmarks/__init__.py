"""Figures of the running library on this machine: ``python -m tests.benchmarks`` measures them."""
