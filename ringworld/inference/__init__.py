"""Inference: ids in, ids out. The cache, prefill, decoding and sampling."""
