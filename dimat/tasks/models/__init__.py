"""The models that a task can name: `mlp`, `cnn`, `resnet20`, `vgg16_bn`, or your own as `module:factory`.

A factory is `fn(input_shape, num_classes, **options) -> Module`; one file holds one model, named as users type it.
All are plain torch operations without control flow that depends on data, so that their permutation groups can be
traced.
"""

from dimat.tasks.models.build import BUILTIN, ModelSpec

__all__ = ["BUILTIN", "ModelSpec"]
