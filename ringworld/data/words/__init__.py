"""Text to ids and back, whatever model they are of, and the forms that a conversation takes."""
