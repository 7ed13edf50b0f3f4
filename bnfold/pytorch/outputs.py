"""What the outputs of a model are called: by the keys of what the module returns, or by their number."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree


def called(results: Any) -> list[str]:
    """Names for the leaves of a result, in order: `logits` of `{"logits": ...}`, `output` of a single tensor,
    `output_0` and so on of a tuple.

    Args:
        results: What the module returns, or anything of the same structure; None is no output.
    """
    leaves = [path for path, leaf in _pytree.tree_flatten_with_path(results)[0] if leaf is not None]
    names = [".".join(map(_key, path)) for path in leaves]
    if len(names) == 1 and not _is_named(leaves[0]):
        return ["output"]
    return [
        name if _is_named(path) else f"output_{i}"
        for i, (name, path) in enumerate(zip(names, leaves, strict=True))
    ]


def _is_named(path: tuple[Any, ...]) -> bool:
    return any(not isinstance(entry, _pytree.SequenceKey) for entry in path)


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
