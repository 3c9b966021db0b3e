"""Which functions do what to relevance, by name."""

from torch.autograd.graph import Node

__all__ = ["AVERAGES", "ELEMENTWISE", "GATES", "MOVES", "is_move"]

ELEMENTWISE = frozenset(
    """
    celu clamp clamp_max clamp_min clip elu gelu hardshrink hardsigmoid hardswish hardtanh
    leaky_relu logsigmoid mish neg negative prelu relu relu6 rrelu selu sigmoid silu softplus
    softshrink softsign tanh tanhshrink _threshold threshold
    group_norm instance_norm layer_norm rms_norm
""".split()  # noqa: SIM905 - names, easier to read so
)
"""One output for one input, and normalisation; relevance is passed on."""

GATES = {"hardsigmoid": 2, "sigmoid": 2, "clamp": 1, "clip": 1, "hardtanh": 1, "relu6": 1}
"""What bounded activations are to a factor: the greater, the more surely they are its gate."""

AVERAGES = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d
    fold interpolate mean sum upsample
""".split()  # noqa: SIM905 - names, easier to read so
)
"""Fixed linear maps; relevance is shared by contribution."""

MOVES = frozenset(
    """
    __get__ __set__ __getitem__ __setitem__ adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices
    adaptive_max_pool3d_with_indices amax as_strided bfloat16 broadcast_to broadcast_tensors cat
    channel_shuffle chunk clone concat concatenate contiguous copy cpu cuda double dsplit dstack
    expand expand_as flatten flip float gather half hsplit hstack index_select masked_fill
    masked_select max max_pool1d max_pool2d max_pool3d max_pool1d_with_indices
    max_pool2d_with_indices max_pool3d_with_indices maximum moveaxis movedim narrow
    native_channel_shuffle pad permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave
    requires_grad reshape reshape_as roll rot90 select slice split split_with_sizes squeeze stack
    swapaxes swapdims t take take_along_dim tensor_split tile to transpose type type_as unbind
    unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as vsplit vstack where zero
""".split()  # noqa: SIM905 - names, easier to read so
)
"""What moves, copies or chooses numbers; their gradient moves relevance as it should."""

_NODES = (
    "AccumulateGrad", "AliasBackward", "AsStridedBackward", "BackwardHookFunctionBackward",
    "CloneBackward", "CopyBackwards",
    "CopySlices", "ExpandBackward", "PermuteBackward", "ReshapeAliasBackward", "SelectBackward",
    "SliceBackward", "SplitBackward", "SqueezeBackward", "TBackward", "ToCopyBackward",
    "TransposeBackward", "UnbindBackward", "UnsafeViewBackward", "UnsqueezeBackward",
    "ViewBackward",
)  # fmt: skip


def is_move(node: Node) -> bool:
    """Whether a node of the graph only moves numbers."""
    return node.name().startswith(_NODES)
