"""The models: what they compute, and the folder that holds their weights."""
