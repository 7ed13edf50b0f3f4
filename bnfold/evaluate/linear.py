"""Matrix products: MatMul and Gemm."""

from __future__ import annotations

import numpy as np

from .node import Array, Node, Operator


def matmul(node: Node) -> Array:
    return np.asarray(np.matmul(node[0], node[1]))


def gemm(node: Node) -> Array:
    """C is broadcast, before opset 7 even without `broadcast=1`: files lack it, and there is one meaning."""
    a = node[0].T if node.attributes["transA"] else node[0]
    b = node[1].T if node.attributes["transB"] else node[1]
    product = node.attributes["alpha"] * (a @ b)
    c = node.optional(2)
    if c is None:
        return np.asarray(product)
    return np.asarray(product + node.attributes["beta"] * np.broadcast_to(c, product.shape))


OPERATORS: dict[str, Operator] = {
    "Gemm": gemm,
    "MatMul": matmul,
}
