"""The command line: one program, a few verbs."""
