"""Text: tokenizers, and chat templates and their renderer."""
