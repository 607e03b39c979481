"""Models on disk: `.safetensors` files and Hugging Face folders, read and written tensor by tensor.

    model = open_model(Path("a.safetensors"))          # reads the header alone: names, dtypes, shapes, metadata
    weight = model.read("head.weight")                 # reads that tensor's bytes, and no others
    write_model(Path("b.safetensors"), tensors, like=model)

Nothing here executes what a file holds: pickled checkpoints are refused, with what to do. Files are read by plain reads
of a tensor's byte range, never mapped, so that what a program holds is what it has asked for.
"""

from dimat.modelfile.fit import Fit, build_model, fit, same_architecture
from dimat.modelfile.header import StoredTensor
from dimat.modelfile.model import ModelFile, open_model
from dimat.modelfile.pieces import Layout, lay_out
from dimat.modelfile.write import check_out, write_model, write_streamed

__all__ = [
    "Fit",
    "Layout",
    "ModelFile",
    "StoredTensor",
    "build_model",
    "check_out",
    "fit",
    "lay_out",
    "open_model",
    "same_architecture",
    "write_model",
    "write_streamed",
]
