"""What our own recipes learn from: books, one film, moving shapes, and facts hidden in books."""
