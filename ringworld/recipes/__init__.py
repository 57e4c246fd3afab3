"""Recipes: which model, which stages, which data, and from which start."""
