"""Generation: the cache, sampling, text and vision."""
