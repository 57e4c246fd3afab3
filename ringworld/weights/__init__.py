"""Weights on disk: opened from and saved to any format. One table names them all."""
