"""The rules that come with dimat; importing the package registers them."""

from dimat.align.rules import entrywise, layers, shapes

__all__ = ["entrywise", "layers", "shapes"]
