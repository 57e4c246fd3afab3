"""A model behind HTTP: OpenAI's interface over one engine."""
