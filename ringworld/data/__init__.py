"""Everything between a file on disk and a batch. A module uses those above it, and none below:

example    one stream of ids and codes, and which of its tokens are learned
books      passages of books as examples
samples    the sample books and the sample film
packing    examples to rows, rows to batches
corpora    a user's files to token shards
questions  questions about long documents, from a model
"""
