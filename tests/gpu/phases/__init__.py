"""The phases of quick.py: each module has ROWS, a function for each row's name that gives what is to be told of it."""
