"""Foreign films and pictures through one door, decoded where they can harm nobody, to codes."""
