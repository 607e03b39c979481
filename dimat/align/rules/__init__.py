"""The rules that come with dimat; importing the package registers them."""

from dimat.align.rules import attention, entrywise, images, layers, lookup, losses, recurrent, reductions, shapes

__all__ = ["attention", "entrywise", "images", "layers", "lookup", "losses", "recurrent", "reductions", "shapes"]
