"""Weights from elsewhere and to elsewhere. Every reader gives a `Checkpoint`; one table names all.

checkpoint  what a reader gives            names   one weight, its name on all sides
"""
