"""Films and pictures: the decoder, its sandbox, frame sampling, the codec."""
