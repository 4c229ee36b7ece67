"""Batch norms folded into the convolutions before them, so that the converter has less to go through."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTION, _NORM = torch.ops.aten.conv2d.default, torch.ops.aten.batch_norm.default


def fold_batch_norms(program: ExportedProgram) -> None:
    """Change `program` in place, wherever what a convolution gives goes to one batch norm alone."""
    graph, signature = program.graph, program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    values = program.state_dict
    for norm in graph.find_nodes(op="call_function", target=_NORM):
        convolution, scale, shift, mean, variance, training, _, epsilon, _ = norm.args
        if convolution.target is not _CONVOLUTION or training or scale is None:
            continue
        inputs, weight, bias, *others = (*convolution.args, None)[: max(3, len(convolution.args))]
        # What changes must serve nothing else; the new bias takes the place of the norm's.
        if any(node and len(node.users) != 1 for node in (convolution, weight, bias, shift)):
            continue
        kernel, mean, variance, scale, offset = (
            values[names[node.name]] for node in (weight, mean, variance, scale, shift)
        )
        old = values[names[bias.name]] if bias else None
        fused = fuse_conv_bn_weights(kernel, old, mean, variance, epsilon, scale, offset)
        values[names[weight.name]], values[names[shift.name]] = fused
        shift.meta["val"] = shift.meta["val"].to(kernel.dtype)
        convolution.args = (inputs, weight, shift, *others)
        norm.replace_all_uses_with(convolution)
        graph.erase_node(norm)
    program.graph_module.recompile()
