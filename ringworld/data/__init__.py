"""Everything between a file on disk and a batch. A room uses those above it, and none below:

example    one stream of ids and codes, and what to learn of it
words      text to ids, and the forms of a conversation
films      foreign media, through one door, to codes
packing    examples to rows, rows to batches
samples    what our own recipes learn from
corpora    a user's files to token shards
questions  what a model asks about long documents
"""
