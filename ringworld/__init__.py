"""ringworld: world models on million-length video and language, with RingAttention in JAX."""
