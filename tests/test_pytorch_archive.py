"""Files of torch: recognised by content, and read without running any of it."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # only where torch is

from bnfold.errors import InputError  # noqa: E402
from bnfold.pytorch import archive, pickles  # noqa: E402
from bnfold.pytorch.archive import Kind, identify  # noqa: E402
from bnfold.pytorch.failure import recorded  # noqa: E402
from bnfold.pytorch.grammar import Unplain, need_plain_fields  # noqa: E402
from bnfold.pytorch.load import load_torch  # noqa: E402
from bnfold.pytorch.plain import need_plain  # noqa: E402
from bnfold.pytorch.quiet import quiet  # noqa: E402

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE = "data/sample_inputs/model.pt"


class Small(nn.Module):  # type: ignore[misc]  # Module is Any here
    """A parameter, a constant, and a size that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("factor", torch.ones(1), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.conv(x) * self.factor * x.shape[2]


def export(module: nn.Module, path: Path, *inputs: Any, **options: Any) -> Path:
    with quiet():
        torch.export.save(torch.export.export(module.eval(), inputs, **options), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.pt2"
    return export(Small(), path, torch.randn(2, 3, 8, 8), dynamic_shapes={"x": {2: torch.export.Dim.DYNAMIC}})


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def rewritten(source: Path, target: Path, edits: dict[str, Callable[[bytes], bytes]], **more: bytes) -> Path:
    """The archive with some entries changed, and others added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            edit = edits.get(name.partition("/")[2], bytes)
            new.writestr(name, edit(old.read(name)))
        top = old.namelist()[0].partition("/")[0]
        for name, data in more.items():
            new.writestr(f"{top}/{name}", data)
    return target


def edited(edit: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    """An edit of JSON."""

    def apply(data: bytes) -> bytes:
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    return apply


def code(mark: Path) -> str:
    return f"__import__('os').system('touch {mark}')"


# Each makes an archive whose payload touches `mark`, and says what the message has to name.
Craft = Callable[[Path, Path, Path], str]


def sample_inputs(small: Path, target: Path, mark: Path) -> str:
    rewritten(small, target, {SAMPLE: lambda _: saved(((Touch(mark),), {}))})
    return f"entry {SAMPLE}: a pickle that names {os.system.__module__}.system"


def pickled_weight(small: Path, target: Path, mark: Path) -> str:
    def mark_pickled(config: Any) -> None:
        config["config"]["conv.weight"]["use_pickle"] = True

    edits = {WEIGHTS: edited(mark_pickled), "data/weights/weight_0": lambda _: saved(Touch(mark))}
    rewritten(small, target, edits)
    return f"entry {WEIGHTS}: 'conv.weight' is stored as a pickle"


def pickled_constant(small: Path, target: Path, mark: Path) -> str:
    def mark_pickled(config: Any) -> None:
        config["config"]["factor"]["use_pickle"] = 1  # anything that counts as true

    edits = {CONSTANTS: edited(mark_pickled), "data/constants/tensor_0": lambda _: saved(Touch(mark))}
    rewritten(small, target, edits)
    return f"entry {CONSTANTS}: 'factor' is stored as a pickle"


def opaque_constant(small: Path, target: Path, mark: Path) -> str:
    def point(config: Any) -> None:
        config["config"]["factor"] |= {"use_pickle": True, "path_name": "opaque_obj_0"}

    more = {"data/constants/opaque_obj_0": pickle.dumps(Touch(mark))}
    rewritten(small, target, {CONSTANTS: edited(point)}, **more)
    return "'opaque_obj_0', no tensor"


def old_weights(small: Path, target: Path, mark: Path) -> str:
    rewritten(small, target, {}, **{"data/weights/model.pt": saved(Touch(mark))})
    return "entry data/weights/model.pt: a pickle that names"


def size(small: Path, target: Path, mark: Path) -> str:
    def edit(program: Any) -> None:
        for value in program["graph_module"]["graph"]["sym_int_values"].values():
            value["as_expr"]["expr_str"] = code(mark)

    rewritten(small, target, {MODEL: edited(edit)})
    return "is no plain expression"


def text_in_a_size(small: Path, target: Path, mark: Path) -> str:
    """Of a string among the arguments of its classes sympy makes an expression: by evaluating it."""
    command = "+".join(f"chr({ord(letter)})" for letter in f"touch {mark}")

    def edit(program: Any) -> None:
        for value in program["graph_module"]["graph"]["sym_int_values"].values():
            text = f"__import__(chr(111)+chr(115)).system({command})"
            value["as_expr"]["expr_str"] = f"Max('{text}', Integer(1))"

    rewritten(small, target, {MODEL: edited(edit)})
    return "is no plain expression"


def name(small: Path, target: Path, mark: Path) -> str:
    evil = f"x=[{code(mark)}][0]"

    def edit(data: bytes) -> bytes:
        text = data.decode().replace('{"name": "x"}', json.dumps({"name": evil}))
        return text.replace('"x": {"dtype"', f'{json.dumps(evil)}: {{"dtype"').encode()

    rewritten(small, target, {MODEL: edit})
    return "is no plain name"


def guard(small: Path, target: Path, mark: Path) -> str:
    rewritten(small, target, {MODEL: edited(lambda program: program.update(guards_code=[code(mark)]))})
    return "is no plain expression"


def tree_of(small: Path, target: Path, mark: Path, node: dict[str, Any]) -> None:
    """The outputs in one more container; the payload is a module that it imports."""
    payload = f"open({str(mark)!r}, 'w')\nclass E: pass\n"
    (target.parent / f"{node.pop('imports')}.py").write_text(payload)

    def edit(program: Any) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        version, inner = json.loads(signature["out_spec"])
        signature["out_spec"] = json.dumps([version, node | {"children_spec": [inner]}])

    rewritten(small, target, {MODEL: edited(edit)})


def enum_key(small: Path, target: Path, mark: Path) -> str:
    keys = [{"__enum__": True, "fqn": "payload_one:E", "name": "A"}]
    node = {"imports": "payload_one", "type": "builtins.dict", "context": json.dumps(keys)}
    tree_of(small, target, mark, node)
    return "a tree imports 'payload_one:E'"


def defaults(small: Path, target: Path, mark: Path) -> str:
    context = {"default_factory_module": "payload_two", "default_factory_name": "E", "dict_context": ["a"]}
    node = {"imports": "payload_two", "type": "collections.defaultdict", "context": context}
    tree_of(small, target, mark, node)
    return "a tree imports 'payload_two'"


def operator_on_files(small: Path, target: Path, mark: Path) -> str:
    def edit(program: Any) -> None:
        node = program["graph_module"]["graph"]["nodes"][-1]
        node["target"] = "torch.ops.aten.from_file.default"
        given = {"filename": {"as_string": str(mark)}, "shared": {"as_bool": True}, "size": {"as_int": 8}}
        node["inputs"] = [{"name": key, "arg": value, "kind": 1} for key, value in given.items()]

    rewritten(small, target, {MODEL: edited(edit)})
    return "'torch.ops.aten.from_file.default' reads or writes files"


CRAFTS: dict[str, Craft] = {
    "sample inputs": sample_inputs,
    "a pickled weight": pickled_weight,
    "a pickled constant": pickled_constant,
    "an opaque constant": opaque_constant,
    "weights of an older version": old_weights,
    "a size": size,
    "a text in a size": text_in_a_size,
    "a name": name,
    "a guard": guard,
    "an enum in a tree": enum_key,
    "a defaultdict in a tree": defaults,
    "an operator on files": operator_on_files,
}

VICTIM = """
import os, sys, torch
for path in sys.argv[1:]:
    sys.path.insert(0, os.path.dirname(path))
    try:
        torch.export.load(path).module()(torch.randn(2, 3, 8, 8))
    except Exception:
        pass
"""


class TestCrafted:
    @pytest.mark.parametrize("case", CRAFTS)
    def test_refused_without_running_it(self, case: str, small: Path, tmp_path: Path) -> None:
        message = CRAFTS[case](small, tmp_path / "crafted.pt2", tmp_path / "mark")
        with pytest.raises(InputError) as caught:
            load_torch(tmp_path / "crafted.pt2")
        assert message in str(caught.value)
        assert not (tmp_path / "mark").exists()

    def test_torch_runs_them(self, small: Path, tmp_path: Path) -> None:
        """Or the test above could not fail. torch alone, in a process of its own."""
        paths = [tmp_path / str(number) / "crafted.pt2" for number in range(len(CRAFTS))]
        for path, craft in zip(paths, CRAFTS.values(), strict=True):
            path.parent.mkdir()
            craft(small, path, path.with_name("mark"))
        subprocess.run([sys.executable, "-c", VICTIM, *map(str, paths)], capture_output=True, check=True)
        ran = [path.with_name("mark").exists() for path in paths]
        assert dict(zip(CRAFTS, ran, strict=True)) == dict.fromkeys(CRAFTS, True)

    def test_trusted_files_may_run(self, small: Path, tmp_path: Path) -> None:
        sample_inputs(small, tmp_path / "crafted.pt2", tmp_path / "mark")
        load_torch(tmp_path / "crafted.pt2", unsafe_pickle=True)
        assert (tmp_path / "mark").exists()


class TestUnplain:
    @pytest.mark.parametrize(
        ("entry", "found"),
        [
            ("data/aotinductor/model/a.so", "none that torch.export.save writes"),
            ("version", "none that torch.export.save writes"),
            ("data/constants/custom_obj_0", "none that torch.export.save writes"),
            ("MODELS/model.json", "several entries of this name"),
        ],
    )
    def test_entries(self, entry: str, found: str, small: Path, tmp_path: Path) -> None:
        rewritten(small, tmp_path / "m.pt2", {}, **{entry: b"8"})
        with pytest.raises(InputError, match=found):
            need_plain(str(tmp_path / "m.pt2"))

    @pytest.mark.filterwarnings("ignore:Duplicate name")  # that is the point
    def test_twice_the_same_name(self, small: Path, tmp_path: Path) -> None:
        """Python reads the last of them, torch the first."""
        rewritten(small, tmp_path / "m.pt2", {}, **{MODEL: b"{}"})
        with pytest.raises(InputError, match="several entries of this name"):
            need_plain(str(tmp_path / "m.pt2"))

    def test_two_archives_in_one(self, small: Path, tmp_path: Path) -> None:
        """An archive in the comment of another: Python reads the one, torch the other."""
        with zipfile.ZipFile(rewritten(small, tmp_path / "m.pt2", {}), "a") as outer:
            outer.comment = rewritten(small, tmp_path / "inner.pt2", {}).read_bytes()
        with pytest.raises(InputError, match="cut off or damaged"):
            load_torch(tmp_path / "m.pt2")

    def test_a_name_that_is_read_in_two_ways(self, small: Path, tmp_path: Path) -> None:
        """Without its flag for UTF-8 Python takes a name for one of DOS."""
        path = rewritten(small, tmp_path / "m.pt2", {}, **{"extra/ü": b""})
        data, name = bytearray(path.read_bytes()), "small/extra/ü".encode()
        first = data.index(name)
        for flag in (first - 30 + 7, data.index(name, first + 1) - 46 + 9):
            assert data[flag] == 8
            data[flag] = 0
        need_plain(str(path))
        path.write_bytes(data)
        with pytest.raises(InputError, match="it is seen by one of two ZIP readers only"):
            need_plain(str(path))

    @pytest.mark.parametrize("names", [["x=1"], ["a b"], [3]])
    def test_names_of_keywords(self, names: list[Any], small: Path, tmp_path: Path) -> None:
        """They become arguments of `forward`."""

        def edit(program: Any) -> None:
            signature = program["graph_module"]["module_call_graph"][0]["signature"]
            version, tree = json.loads(signature["in_spec"])
            leaf = tree["children_spec"][0]["children_spec"][0]
            tree["children_spec"][1] |= {"context": json.dumps(names), "children_spec": [leaf]}
            signature["in_spec"] = json.dumps([version, tree])

        rewritten(small, tmp_path / "m.pt2", {MODEL: edited(edit)})
        with pytest.raises(InputError, match="is no plain name"):
            need_plain(str(tmp_path / "m.pt2"))

    @pytest.mark.parametrize(
        "text",
        [
            "exec('1')",
            "(lambda: 1)()",
            "Max(1, 2)(3)",
            "x.__class__",
            "[y for y in x]",
            "Symbol('a\\'')",
            "x # y",
            "f'{x}'",
            "S('1')",
            "x.system(1)",
            "(y := 1)",
            "1\n",
            "Symbol('f(x)')",
            "Max('1', 2)",
            "Max(*['1'])",
            "Add(('1', '2')[0], 3)",
            "Integer('9**9')",
            "'1' + '2'",
            "Max(b'1', 2)",
            "math.factorial(10)",
            "floor(1e9999999)",
            "floor(Float('1e9999999'))",
            "Float('0.1', precision=1000000)",
            "Max(1, **x)",
            "1 + " * 6000 + "1",
        ],
    )
    def test_expressions(self, text: str, small: Path, tmp_path: Path) -> None:
        edit = edited(lambda program: program.update(guards_code=[text]))
        rewritten(small, tmp_path / "m.pt2", {MODEL: edit})
        with pytest.raises(InputError, match="is no plain expression"):
            need_plain(str(tmp_path / "m.pt2"))

    @pytest.mark.parametrize(
        "text",
        [
            "9**9**9",
            "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
            "Pow(Pow(Pow(9, 60), 60), 60)",
            "PowByNatural(Symbol('s0'), Symbol('s0'))",
            "Pow(2, exp=9999)",
            "pow(9, Integer(9999999999))",
            "pow(9, 3, 99)",
            "FloatPow(9, Float('1e300'))",
            "Pow(9, Rational(99, 1))",
            "1 << 9999999999",
            "LShift(1, 9999999999)",
            "round(5, -9999999999)",
        ],
    )
    def test_powers_that_do_not_end(self, text: str) -> None:
        with pytest.raises(Unplain, match=r"holds powers whose computation may not end|no plain expression"):
            need_plain_fields(text, "expr_str")

    @pytest.mark.parametrize(
        "text",
        [
            "Symbol('s77', positive=True, integer=True)",
            "Pow(Symbol('s0'), Integer(-2))",
            "Pow(Add(Pow(Symbol('s0'), Rational(1, 2)), Integer(1)), 2, evaluate=False)",
            "FloatPow(ToFloat(Symbol('s0')), Float('0.5', precision=53))",
            "L['a b'].size()[0]**2 <= 2**31 and L['x'].size()[1] << 3 > -1",
            "math.ceil(1.5e3 * L['x'].size()[0])",
            "Float('-1.5e-7', precision=53) + Float('inf')",
        ],
    )
    def test_arithmetic(self, text: str) -> None:
        need_plain_fields(text, "expr_str")

    @pytest.mark.parametrize(
        "target",
        [
            "torch.os.system",
            "torch.ops.load_library",
            "math.os",
            "_operator.call",
            "#ns:op",
            "torch.hub.load",
            "os",
        ],
    )
    def test_targets(self, target: str, small: Path, tmp_path: Path) -> None:
        def edit(program: Any) -> None:
            program["graph_module"]["graph"]["nodes"][0]["target"] = target

        rewritten(small, tmp_path / "m.pt2", {MODEL: edited(edit)})
        with pytest.raises(InputError, match="is no plain operator"):
            need_plain(str(tmp_path / "m.pt2"))

    def test_a_string_among_the_inputs(self, small: Path, tmp_path: Path) -> None:
        """It becomes part of a guard, between quotes."""

        def edit(program: Any) -> None:
            program["graph_module"]["graph"]["inputs"].append({"as_string": "' + evil() + '"})

        rewritten(small, tmp_path / "m.pt2", {MODEL: edited(edit)})
        with pytest.raises(InputError, match="is no plain text"):
            need_plain(str(tmp_path / "m.pt2"))

    def test_names_of_values_that_look_like_comments(self, small: Path, tmp_path: Path) -> None:
        """A value may be called as a field of metadata, and still its size is looked at."""

        def edit(program: Any) -> None:
            sizes = program["graph_module"]["graph"]["sym_int_values"]
            sizes["stack_trace"] = {"as_expr": {"expr_str": "exec('1')"}}

        rewritten(small, tmp_path / "m.pt2", {MODEL: edited(edit)})
        with pytest.raises(InputError, match="is no plain expression"):
            need_plain(str(tmp_path / "m.pt2"))

    @pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff"])
    def test_damaged_programs(self, data: bytes, small: Path, tmp_path: Path) -> None:
        rewritten(small, tmp_path / "m.pt2", {MODEL: lambda _: data})
        with pytest.raises(InputError, match="cut off or damaged"):
            need_plain(str(tmp_path / "m.pt2"))


class Attention(nn.Module):  # type: ignore[misc]
    """Numbers that JSON does not have, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        return self.attention(x, x, x, attn_mask=mask)


class Unbacked(nn.Module):  # type: ignore[misc]
    """A size that depends on data; torch writes assertions, with messages."""

    def forward(self, x: Any) -> Any:
        size = x.sum().to(torch.int64).item()
        torch._check(size >= 2)
        torch._check(size < 10)
        return torch.zeros(size) + 1, x.nonzero()


class Branches(nn.Module):  # type: ignore[misc]
    """Graphs in a graph."""

    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x.sin() + 1, lambda x: x.cos(), (x,))


class Odd(nn.Module):  # type: ignore[misc]
    """Names that are no identifiers, arguments of all kinds, keys that are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"3x3 conv": nn.Conv2d(3, 4, 3), "a-b:c/d": nn.Conv2d(4, 4, 1)})

    def forward(self, *xs: Any, **others: Any) -> Any:
        x = xs[0]
        for part in self.parts.values():
            x = part(x)
        return x * others["scale"][0] + others["tree"]["a b"], {"k": x, 3: xs[1]}


class Tied(nn.Module):  # type: ignore[misc]
    """One weight under two names, buffers of both kinds, constants, a training loop's counter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.constant = torch.tensor([2.0])

    def forward(self, x: Any, mode: str = "sum", times: int = 2) -> Any:
        x = self.norm(self.two(self.one(x))) * self.hidden * self.constant * torch.tensor(3.0) * times
        return torch.cat([self.empty, x])


class Arithmetic(nn.Module):  # type: ignore[misc]
    """Sizes computed from sizes."""

    def forward(self, x: Any, y: Any) -> Any:
        h, w = x.shape[-2:]
        resized = nn.functional.interpolate(x, size=(int(h * 1.5), max(w // 2, 4)))
        return (
            resized,
            x[..., : (h + 1) // 2, : w % 3 + 1],
            x.flatten(2) + y[1:],
            x.new_zeros(h**2),
        )


AUTO = torch.export.Dim.AUTO
PLAIN: dict[str, tuple[Callable[[], Any], tuple[Any, ...], dict[str, Any]]] = {
    "attention": (Attention, (torch.randn(2, 5, 8),), {"dynamic_shapes": {"x": {0: AUTO, 1: AUTO}}}),
    "unbacked": (Unbacked, (torch.ones(4),), {}),
    "cond": (Branches, (torch.ones(4),), {}),
    "odd": (
        Odd,
        (torch.randn(1, 3, 8, 8), torch.randn(2)),
        {"kwargs": {"scale": (torch.ones(1),), "tree": collections.OrderedDict({"a b": torch.ones(1)})}},
    ),
    "tied": (Tied, (torch.randn(2, 3), "mean", 3), {"strict": True}),
    "arithmetic": (
        Arithmetic,
        (torch.randn(1, 3, 9, 11), torch.randn(9 * 11 + 1)),
        {"dynamic_shapes": {"x": {2: AUTO, 3: AUTO}, "y": {0: AUTO}}},
    ),
    "lstm": (lambda: nn.LSTM(4, 5, bidirectional=True), (torch.randn(2, 7, 4),), {}),
    "half": (lambda: nn.Conv1d(3, 4, 3).bfloat16(), (torch.randn(1, 3, 8).bfloat16(),), {}),
    "large": (lambda: nn.Linear(3000, 3000), (torch.randn(1, 3000),), {}),
}


class TestPlain:
    @pytest.mark.parametrize("case", PLAIN)
    def test_loaded(self, case: str, tmp_path: Path) -> None:
        build, inputs, options = PLAIN[case]
        module = build()
        keywords = options.get("kwargs", {})
        path = export(module, tmp_path / "m.pt2", *inputs, **options)
        loaded = load_torch(path)
        assert loaded.name == str(path)
        assert loaded.notes == ()
        expected = torch.utils._pytree.tree_leaves(module(*inputs, **keywords))
        actual = torch.utils._pytree.tree_leaves(loaded.program.module()(*inputs, **keywords))
        for one, other in zip(expected, actual, strict=True):
            assert torch.equal(one, other), "the same operators on the same numbers"

    def test_with_extra_files(self, tmp_path: Path) -> None:
        program = torch.export.export(nn.ReLU(), (torch.ones(2),))
        torch.export.save(
            program, tmp_path / "m.pt2", extra_files={"read me.txt": "anything, even exec('1')"}
        )
        load_torch(tmp_path / "m.pt2")

    def test_an_operator_that_torch_does_not_know(self, small: Path, tmp_path: Path) -> None:
        """As when the library that brings it is missing."""

        def edit(program: Any) -> None:
            program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.torchvision.no_such.default"

        rewritten(small, tmp_path / "m.pt2", {MODEL: edited(edit)})
        with pytest.raises(
            InputError, match=r"failed to resolve torch\.ops\.torchvision\.no_such\.default to"
        ):
            load_torch(tmp_path / "m.pt2")

    def test_the_layout_before_torch_2_8(self, tmp_path: Path) -> None:
        path, module = old_layout(tmp_path)
        x = torch.randn(1, 3, 8, 8)
        assert torch.equal(load_torch(path).program.module()(x), module(x))

    @pytest.mark.parametrize("entry", ["serialized_state_dict.pt", "serialized_example_inputs.pt"])
    def test_the_old_layout_with_a_payload(self, entry: str, tmp_path: Path) -> None:
        path, _ = old_layout(tmp_path, **{entry: saved(Touch(tmp_path / "mark"))})
        with pytest.raises(InputError, match=f"entry {entry}: a pickle that names"):
            load_torch(path)
        assert not (tmp_path / "mark").exists()

    def test_training_mode_is_noted(self, tmp_path: Path) -> None:
        module = nn.Sequential(collections.OrderedDict(conv=nn.Conv1d(3, 4, 3), bn=nn.BatchNorm1d(4)))
        program = torch.export.export(module.train(), (torch.randn(2, 3, 8),))
        torch.export.save(program, tmp_path / "m.pt2")
        (note,) = load_torch(tmp_path / "m.pt2").notes
        assert note == "the program was exported in training mode, and stays in it: bn"

    def test_statistics_of_the_batch_are_no_training(self, tmp_path: Path) -> None:
        module = nn.BatchNorm1d(4, track_running_stats=False)
        assert load_torch(export(module, tmp_path / "m.pt2", torch.randn(2, 4, 8))).notes == ()


def old_layout(folder: Path, **entries: bytes) -> tuple[Path, nn.Module]:
    from torch._export.serde.serialize import serialize

    module = nn.Conv2d(3, 4, 3).eval()
    parts = serialize(torch.export.export(module, (torch.randn(1, 3, 8, 8),)))
    contents = {
        "version": b"8.1",
        "serialized_exported_program.json": parts.exported_program,
        "serialized_state_dict.pt": parts.state_dict,
        "serialized_constants.pt": parts.constants,
        "serialized_example_inputs.pt": parts.example_inputs,
        **entries,
    }
    with zipfile.ZipFile(folder / "old.pt2", "w") as file:
        for entry, data in contents.items():
            file.writestr(entry, data)
    return folder / "old.pt2", module


class TestIdentify:
    def test_by_content(self, small: Path, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        module = nn.Linear(2, 3)
        torch.save(module.state_dict(), tmp_path / "zip")
        torch.save(module.state_dict(), tmp_path / "legacy", _use_new_zipfile_serialization=False)
        torch.save(module, tmp_path / "module")
        save_file(module.state_dict(), tmp_path / "safe")
        with quiet():
            torch.jit.save(torch.jit.script(module), tmp_path / "script")
        assert identify(str(small)) is Kind.PROGRAM
        assert identify(str(tmp_path / "zip")) is Kind.PICKLED
        assert identify(str(tmp_path / "module")) is Kind.PICKLED
        assert identify(str(tmp_path / "legacy")) is Kind.LEGACY
        assert identify(str(tmp_path / "safe")) is Kind.SAFETENSORS
        assert identify(str(tmp_path / "script")) is Kind.TORCHSCRIPT

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"", "is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
            (b"\n<!DOCTYPE html><html><head><title>404", "a web page"),
            (b"<HTML>", "a web page"),
            (b'{"weight_map": {}}', "an index of shards"),
            (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
            (b"\x1f\x8b\x08", "compressed"),
            (b"\x89HDF\r\n", "Keras"),
            (b"hello, world", "no file that torch writes"),
            (b"PK\x03\x04 and so on", "cut off or damaged"),
            ((10**6).to_bytes(8, "little") + b'{"a":', "cut off or damaged"),
            (b"\x00" * 257 + b"ustar", "a tar archive"),
        ],
    )
    def test_others_are_named(self, data: bytes, said: str, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            identify(str(path))
        assert said in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")

    def test_other_archives(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "m.pth", "w") as file:
            file.writestr("word/document.xml", "")
        with pytest.raises(InputError, match=r"that torch did not write \(it holds word/document.xml\)"):
            identify(str(tmp_path / "m.pth"))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no such file"):
            identify(str(tmp_path / "m.pth"))
        with pytest.raises(InputError, match="the name of the model is empty"):
            identify("")
        with pytest.raises(InputError, match="cannot be read: embedded null byte"):
            identify("a\0b")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is a folder; give the file with the model or its weights"):
            identify(str(tmp_path))
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(InputError, match=r"give one of the files in it: model\.safetensors"):
            identify(str(tmp_path))

    def test_cut_off(self, small: Path, tmp_path: Path) -> None:
        (tmp_path / "m.pt2").write_bytes(small.read_bytes()[:-100])
        with pytest.raises(InputError, match="cut off or damaged"):
            identify(str(tmp_path / "m.pt2"))

    def test_a_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="is no regular file"):
            identify(str(tmp_path / "pipe"))


def packed(source: Path, target: Path, blanks: int = 0, suffix: str = "") -> Path:
    """The archive, compressed, with blanks behind some entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            more = b" " * blanks if suffix and name.endswith(suffix) else b""
            new.writestr(name, old.read(name) + more)
    return target


class TestBombs:
    """Small files that would fill the memory."""

    LARGE = 80 << 20

    def test_an_archive(self, small: Path, tmp_path: Path) -> None:
        path = packed(small, tmp_path / "m.pt2", self.LARGE, "model.json")
        with pytest.raises(InputError, match=r"cut off or damaged \(it has \d+ bytes, and claims to hold 83"):
            identify(str(path))

    def test_an_archive_in_an_archive(self, small: Path, tmp_path: Path) -> None:
        """Its sample inputs are a file of torch.save, stored without compression."""
        (tmp_path / "inputs").write_bytes(saved(((torch.ones(2),), {})))
        bomb = packed(tmp_path / "inputs", tmp_path / "bomb", self.LARGE, "data.pkl").read_bytes()
        rewritten(small, tmp_path / "m.pt2", {SAMPLE: lambda _: bomb})
        with pytest.raises(
            InputError, match=r"sample_inputs/model\.pt: it has .* bytes, and claims to hold 83"
        ):
            load_torch(tmp_path / "m.pt2")

    def test_compressed_weights(self, tmp_path: Path) -> None:
        """torch maps what is in the file, and so takes compressed bytes for weights."""
        torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "m.pt")
        with pytest.raises(InputError, match=r"its entry m/data\.pkl is compressed, which torch never does"):
            identify(str(packed(tmp_path / "m.pt", tmp_path / "packed.pt")))

    def test_torchscript_compresses_its_code(self, tmp_path: Path) -> None:
        with quiet():
            torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())), tmp_path / "m.pt")
        with zipfile.ZipFile(tmp_path / "m.pt") as file:
            assert any(entry.compress_type == zipfile.ZIP_DEFLATED for entry in file.infolist())
        assert identify(str(tmp_path / "m.pt")) is Kind.TORCHSCRIPT
        archive.need_intact(str(tmp_path / "m.pt"))


class TestIntact:
    def test_a_flipped_bit(self, small: Path, tmp_path: Path) -> None:
        data, weight = bytearray(small.read_bytes()), Small().conv.weight
        with torch.no_grad(), zipfile.ZipFile(small) as file:
            where = data.index(file.read(f"{small.stem}/data/weights/weight_0"))
        data[where + 4 * weight.numel() // 2] ^= 1
        (tmp_path / "m.pt2").write_bytes(data)
        torch.export.load(tmp_path / "m.pt2")  # torch does not see it
        with pytest.raises(InputError, match=r"cut off or damaged \(Bad CRC-32 for file 'small/data/weights"):
            load_torch(tmp_path / "m.pt2")

    def test_files_without_checksums(self, tmp_path: Path) -> None:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(nn.Linear(4, 4).state_dict(), tmp_path / "m.pt")
        finally:
            torch.serialization.set_crc32_options(True)
        archive.need_intact(str(tmp_path / "m.pt"))


class TestRecorded:
    """The lines that a program names: only files that Python has read itself are looked into."""

    def told(self, file: str, number: int = 1) -> str:
        node = torch.fx.Graph().placeholder("x")
        node.meta["stack_trace"] = f'  File "{file}", line {number}, in forward\n'
        try:
            raise ValueError
        except ValueError as error:
            return recorded(error)

    def test_of_code_that_runs(self) -> None:
        assert self.told(__file__, 3) == f"at {__file__}:3: `from __future__ import annotations`"

    def test_of_any_other_file(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("secret\n")
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
        for name in ("secret", "pipe"):
            assert self.told(str(tmp_path / name)) == f"at {tmp_path / name}:1"


class TestPickles:
    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_named_and_not_run(self, legacy: bool, protocol: int, tmp_path: Path) -> None:
        path, mark = tmp_path / "m.pt", tmp_path / "mark"
        torch.save(
            {"a": torch.ones(2), "b": Touch(mark), "c": nn.ReLU(), "d": Touch(mark)},
            path,
            _use_new_zipfile_serialization=not legacy,
            pickle_protocol=protocol,
        )
        named = pickles.strangers(str(path))
        assert named == (f"{os.system.__module__}.system", "torch.nn.modules.activation.ReLU")
        assert not mark.exists()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
    def test_state_dicts_name_no_strangers(self, dtype: Any, tmp_path: Path) -> None:
        state = nn.Linear(2, 2).state_dict() | {
            "x": torch.zeros(2, dtype=dtype),
            "y": nn.Parameter(torch.ones(1)),
        }
        torch.save(state, tmp_path / "m.pt")
        assert pickles.strangers(str(tmp_path / "m.pt")) == ()

    def test_damaged(self, tmp_path: Path) -> None:
        torch.save({"a": nn.ReLU()}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
        whole = (tmp_path / "m.pt").read_bytes()
        for end in range(0, len(whole), 20):
            (tmp_path / "m.pt").write_bytes(whole[:end])
            assert len(pickles.strangers(str(tmp_path / "m.pt"))) <= 2


def test_names_of_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="cut off or damaged"):
        archive.names(str(tmp_path / "m.pt"))
