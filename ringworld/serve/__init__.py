"""A model behind HTTP: OpenAI's interface over one engine, and a page to talk to it."""
