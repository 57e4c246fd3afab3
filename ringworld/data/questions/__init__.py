"""Questions about long documents, which another model is asked for, chunk by chunk."""
