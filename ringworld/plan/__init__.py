"""What a run will need before it is started: compiled programs, read instead of run."""
