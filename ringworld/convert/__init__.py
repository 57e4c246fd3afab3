"""Weights from elsewhere and to elsewhere. Every reader gives a `Checkpoint`; one table names all.

checkpoint  what a reader gives            names   one weight, its name on all sides
lwm         LWM's models                   packed  msgpack, flax's and LWM's
codecs      LWM's and diffusers' VQGANs    unpickle  pickles, without running them
gguf        the container                  gguf_model, gguf_words  what lies in it
cursor      bytes, and arrays in them      settings  config.json
"""
