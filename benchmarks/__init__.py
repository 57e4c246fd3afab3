"""Benchmarks: this package beside what people would otherwise use, in one run on one machine."""
