"""A user's own files to token shards: what is asked for, what is read, what is kept of it."""
