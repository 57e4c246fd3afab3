"""Workers: each does one kind of work in its own process, and most in an environment of their own.

They import nothing of each other, and of this folder's parent only what needs the standard library
and numpy.
"""
