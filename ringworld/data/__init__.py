"""Everything between a file on disk and a batch: media, samples, shards and their mixing."""
