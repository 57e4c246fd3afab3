"""Weights from elsewhere and to elsewhere. Every reader gives a `Checkpoint`; one table names all.

checkpoint  what a reader gives            names   one weight, its name on all sides
open        anything, as a model of ours   save    out: `convert`
hf          Hugging Face's configs and folders
diffusers   the codec, out                 vision  two vocabularies in one, and sight for text
lwm         LWM's models                   packed  msgpack, flax's and LWM's
codecs      LWM's and diffusers' VQGANs    unpickle  pickles, without running them
gguf        the container                  gguf_model, gguf_words  what lies in it
cursor      bytes, and arrays in them      settings  config.json
"""
