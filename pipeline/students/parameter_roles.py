"""The role of each parameter of a model (matrix, table or vector), which decides its optimizer and learning rate.

In: a transformers model. Out: a role by parameter name. It follows from the module that owns the parameter, not from
its dimensions: a convolution, the biases of experts, `A_log` of a Mamba layer and relative positions have two or more
dimensions and are not linear maps; the experts of a layer are a stack of linear maps in one parameter.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from transformers.pytorch_utils import Conv1D

from kdpipe.schemas.choices import Role

# Routers choose experts by small differences; orthogonal steps make all of them equally large (see the test's table).
_ROUTER: Final = re.compile(r"(^|\.)(gate|[a-z_]*router[a-z_]*)\.")


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter by name, tied ones once."""
    modules: Mapping[str, nn.Module] = dict(model.named_modules())
    head = _head(model)
    roles: dict[str, Role] = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if module is head or isinstance(module, nn.Embedding):
            roles[name] = "tables" if parameter.ndim == 2 else "vectors"
        elif _is_linear_map(module, leaf, parameter) and not _is_router(name, module):
            roles[name] = "matrices"
        else:
            roles[name] = "vectors"
    return roles


def _head(model: Any) -> nn.Module | None:
    """The output head, if the model has one; a tied head owns the embedding table."""
    head: nn.Module | None = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head


def _is_linear_map(module: nn.Module, leaf: str, parameter: nn.Parameter) -> bool:
    """Whether it is the weight of a linear layer, or the stacked weights of a layer's experts."""
    if min(parameter.shape[-2:], default=0) < 2:
        return False
    if parameter.ndim == 2:
        linear = leaf == "weight" and isinstance(module, nn.Linear | Conv1D)
        return linear or (leaf == "in_proj_weight" and isinstance(module, nn.MultiheadAttention))
    return parameter.ndim == 3 and "Experts" in type(module).__name__ and "bias" not in leaf


def _is_router(name: str, module: nn.Module) -> bool:
    return _ROUTER.search(name) is not None or "Router" in type(module).__name__
