"""The built-in merge methods, a family to a file, each named as users type it."""
