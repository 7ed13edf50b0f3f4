"""What `load_torch` makes of state dicts, factories, pickles and TorchScript."""

from __future__ import annotations

import collections
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # only where torch is

from bnfold.errors import InputError  # noqa: E402
from bnfold.pytorch.load import Loaded, load_torch  # noqa: E402
from bnfold.pytorch.quiet import quiet  # noqa: E402

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=4, bias=True):
        super().__init__()
        self.conv = nn.Conv1d(3, channels, 3, bias=bias)
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x):
        return self.bn(self.conv(x))

    @classmethod
    def small(cls):
        return cls(2)

def make(channels=4, bias=True):
    return Net(channels, bias)

def deep():
    raise ValueError("no weights for\\nthat")

def fail():
    return deep()

def fail_in_torch():
    return nn.Conv1d(3, 4, 3)(torch.ones(1))

def leave():
    raise SystemExit(2)

def nothing():
    pass

def several():
    return Net(), "names"

def half():
    return Net().half()

def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU())

def meta():
    with torch.device("meta"):
        return Net()

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Net()

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

class Uncopied(Net):
    def __deepcopy__(self, memo):
        raise RuntimeError("not this one")

class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.dropout = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Dropout()

    def forward(self, x):
        if x.shape[0] > 1:  # an operator in a block
            x = self.bn(self.conv(x))
        else:
            x = self.conv(x)
        return self.dropout(x)

class Fixed(nn.Module):
    def forward(self, x):
        if x.shape[0] > 1:
            x = nn.functional.dropout(x, 0.5, True)
        return x

class Hollow(Net):
    def __init__(self):
        with torch.device("meta"):
            super().__init__()
            self.register_buffer("steps", torch.ones(3), persistent=False)

def parallel():
    return nn.DataParallel(torch.compile(Net(), backend="eager"))

def uncalled():
    return Net

instance = Net()
uncopied = Uncopied()
number = 3
"""


def line(text: str) -> str:
    """Where it is in the user's file."""
    return f"usernet.py:{FACTORIES[: FACTORIES.index(text)].count(chr(10)) + 1}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's code in it. The module's name is forgotten afterwards."""
    (tmp_path / "usernet.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("user"):
            del sys.modules[name]


def load(source: Any = None, factory: str | None = "usernet:make", **options: Any) -> Loaded:
    return load_torch(source, factory=factory, pythonpath=options.pop("pythonpath", ["."]), **options)


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def net(**options: Any) -> nn.Module:
    """A module whose statistics are its own."""
    module = load(factory="usernet:make", **options).program
    with torch.no_grad():
        for tensor in (*module.parameters(), module.bn.running_mean):
            tensor.normal_()
    return module


def saved(state: Any, name: str = "weights.pth", **options: Any) -> str:
    torch.save(state, name, **options)
    return name


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def safetensors(state: dict[str, Any]) -> str:
    from safetensors.torch import save_file

    save_file(state, "weights.safetensors")
    return "weights.safetensors"


@pytest.mark.usefixtures("folder")
class TestStateDicts:
    @pytest.mark.parametrize(
        "save",
        [
            saved,
            lambda state: saved(state, _use_new_zipfile_serialization=False),
            safetensors,
        ],
    )
    def test_formats(self, save: Callable[[Any], str]) -> None:
        module = net()
        path = save(module.state_dict())
        loaded = load(path)
        assert same(loaded.program, module)
        assert (loaded.name, loaded.notes) == (path, ())

    def test_without_its_module(self) -> None:
        message = refused(saved(net().state_dict()), factory=None)
        assert message == (
            "weights.pth: holds weights (7 tensors), but no module that takes them; name the function that "
            "builds it with --model package.module:function"
        )

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module.module."])
    def test_wrappers_in_front(self, prefix: str) -> None:
        module = net()
        state = collections.OrderedDict((prefix + key, value) for key, value in module.state_dict().items())
        loaded = load(saved(state))
        assert same(loaded.program, module)
        assert loaded.notes == (f"prefix {prefix!r} stripped from 7 names of weights.pth",)

    def test_wrappers_keep_the_versions(self) -> None:
        """Without them torch takes a checkpoint for one of before 0.4.1."""
        wrapped = nn.DataParallel(net())
        state = wrapped.state_dict()
        assert state._metadata["module.bn"] == {"version": 2}
        del state["module.bn.num_batches_tracked"]
        assert load(saved(state)).notes == (
            "prefix 'module.' stripped from 6 names of weights.pth",
            "num_batches_tracked of 1 layer is in one of weights.pth and the module only",
        )

    def test_wrappers_inside(self) -> None:
        module = net()
        state = {key.replace("conv.", "conv._orig_mod."): value for key, value in module.state_dict().items()}
        loaded = load(saved(state))
        assert same(loaded.program, module)
        assert loaded.notes == ("wrapper '_orig_mod.' stripped from 2 names of weights.pth",)

    def test_a_part_that_is_really_called_module(self) -> None:
        module = load(factory="usernet:Wrapped").program
        loaded = load(saved(module.state_dict()), factory="usernet:Wrapped")
        assert same(loaded.program, module)
        assert loaded.notes == ()

    @pytest.mark.parametrize("key", [None, "checkpoint.model"])
    def test_nested(self, key: str | None) -> None:
        module = net()
        path = saved({"epoch": 3, "checkpoint": {"model": module.state_dict(), "step": torch.ones(1)}})
        loaded = load(path, state_key=key)
        assert same(loaded.program, module)
        found = ("state dict taken from 'checkpoint.model' of weights.pth",)
        assert loaded.notes == (found if key is None else ())

    def test_an_optimizer_beside_it(self) -> None:
        module = net()
        optimizer = torch.optim.Adam(module.parameters())
        module(torch.randn(2, 3, 8)).sum().backward()
        optimizer.step()
        path = saved({"state_dict": module.state_dict(), "optimizer": optimizer.state_dict(), "loss": 0.5})
        assert same(load(path).program, module)

    def test_several(self) -> None:
        module, other = net(), net()
        path = saved({"model": module.state_dict(), "ema": {"shadow": other.state_dict()}})
        assert (
            refused(path)
            == "weights.pth: holds several state dicts; choose with --state-key: model, ema.shadow"
        )
        assert same(load(path, state_key="ema.shadow").program, other)

    def test_a_wrong_key(self) -> None:
        path = saved({"model": net().state_dict(), "best": 1.0})
        for key in ("modle", "best", "model.conv.weight", "model.conv.weight.x"):
            message = f"weights.pth: --state-key {key} leads to no state dict; there is model"
            assert refused(path, state_key=key) == message
        path = saved(net().state_dict())
        assert refused(path, state_key="x").endswith("there is one at the top, drop --state-key")
        assert refused(saved({"a": 1}), state_key="a").endswith("the file holds none")

    def test_a_key_that_is_the_beginning_of_names(self) -> None:
        """As Lightning saves: the model is a part of a larger module."""
        module = net()
        inner = {f"model.{key}": value for key, value in module.state_dict().items()}
        path = saved({"state_dict": inner | {"loss.weight": torch.ones(2)}})
        message = refused(path)
        assert "7 names unexpected (model.conv.weight, model.conv.bias, model.bn.weight, …)" in message
        assert message.endswith("names fit without 'model.': use --state-key state_dict.model")
        assert same(load(path, state_key="state_dict.model").program, module)

    def test_keys_with_dots(self) -> None:
        module = net()
        assert same(load(saved({"a.b": {"c": module.state_dict()}}), state_key="a.b.c").program, module)

    @pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], torch.ones(3), {1: torch.ones(2)}, {}])
    def test_no_state_dict(self, content: Any) -> None:
        assert ", no state dict; save one with" in refused(saved(content))

    def test_another_model(self) -> None:
        message = refused(saved({"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}))
        assert message == (
            "weights.pth: does not fit the module: 6 names missing (conv.weight, conv.bias, bn.weight, …), "
            "2 names unexpected (fc.weight, fc.bias); no name fits, so these are the weights of another model"
        )

    def test_a_slip(self) -> None:
        state = net().state_dict()
        state["conv.weigth"] = state.pop("conv.weight")
        message = refused(saved(state))
        assert message.endswith(
            "missing (conv.weight), 1 name unexpected (conv.weigth); 'conv.weight' may be 'conv.weigth'"
        )

    def test_a_part(self) -> None:
        state = net().state_dict()
        del state["conv.bias"]
        assert refused(saved(state)).endswith(
            "1 name missing (conv.bias); the file holds a part of the module only"
        )
        assert refused(saved(net().state_dict()), arguments={"bias": False}).endswith(
            "1 name unexpected (conv.bias); the module has fewer parts than the one that was saved"
        )

    def test_a_part_of_the_module(self) -> None:
        state = {f"deep.{key}": value for key, value in net().state_dict().items()}
        assert "names fit without 'deep.': use --state-key deep" in refused(saved(state))
        message = refused(saved(net().state_dict()), factory="usernet:Wrapped")
        assert message.endswith(
            "the module has them beneath 'module.': let the factory return that part of it"
        )

    def test_other_shapes(self) -> None:
        message = refused(saved(net().state_dict()), arguments=[8])
        assert message == (
            "weights.pth: does not fit the module: 6 shapes different (conv.weight is [4, 3, 3] in the file, "
            "but [8, 3, 3] here; conv.bias is [4] in the file, but [8] here; bn.weight is [4] in the file, "
            "but [8] here, …); was the module built with other arguments? give them with --model-args"
        )
        assert same(load(saved(net(arguments=[8]).state_dict()), arguments=[8]).program, net()) is False

    def test_no_value_is_lost_silently(self) -> None:
        """Something in the checkpoint that is no tensor."""
        state = dict(net().state_dict()) | {"epoch": 3}
        assert refused(saved(state)).endswith(
            "1 name unexpected (epoch); epoch is an int, no weight: save the state dict alone"
        )

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (None, "is None, but a tensor in the module; save it as one"),
            (3.5, "is a float, but a tensor in the module; save it as one"),
            (
                torch.eye(4).to_sparse(),
                "is a sparse tensor (sparse_coo), and the module takes dense ones; save it as .to_dense()",
            ),
        ],
    )
    def test_what_is_no_dense_tensor(self, value: Any, said: str) -> None:
        state = dict(net().state_dict()) | {"bn.weight": value}
        assert refused(saved(state)) == f"weights.pth: 'bn.weight' {said}"

    def test_values_of_numpy(self) -> None:
        path = saved({"state_dict": net().state_dict(), "best": np.float64(0.5)})
        assert refused(path).startswith("weights.pth: holds values of numpy (numpy._core.multiarray.scalar")

    def test_names_without_end(self) -> None:
        assert f"1 name unexpected ({'x' * 99}…)" in refused(
            saved(dict(net().state_dict()) | {"x" * 10**6: torch.ones(1)})
        )

    def test_a_flipped_bit(self) -> None:
        """torch maps weights without a look at their checksum."""
        path = saved({"pad": torch.zeros(1)} | net().state_dict())
        data = bytearray(Path(path).read_bytes())
        data[
            data.index(net_bytes := torch.load(path)["conv.weight"].numpy().tobytes()) + len(net_bytes) // 2
        ] ^= 1
        Path(path).write_bytes(data)
        assert "cut off or damaged (Bad CRC-32 for file 'weights/data/1')" in refused(path)

    def test_safetensors_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = safetensors(net().state_dict())
        monkeypatch.setitem(sys.modules, "safetensors", None)
        assert refused(path) == (
            "weights.safetensors: needs safetensors, which is not installed; pip install 'bnfold[torch]'"
        )

    def test_no_name_and_the_folder(self) -> None:
        assert refused("") == "the name of the model is empty; give the path of a file"
        assert refused(".").startswith(".: is a folder; give ")

    def test_counters_do_not_matter(self) -> None:
        module = net()
        state = dict(module.state_dict())
        del state["bn.num_batches_tracked"]
        loaded = load(safetensors(state))
        assert same(loaded.program, module), "torch takes it as 0"

    @pytest.mark.parametrize(
        ("factory", "dtype", "became"),
        [
            ("make", "float16", "widened exactly to float32; the module has float32 there"),
            ("make", "float64", "rounded to float32; the module has float32 there"),
            ("half", "float32", "rounded to float16; the module has float16 there"),
        ],
    )
    def test_other_precision(self, factory: str, dtype: str, became: str) -> None:
        state = net().to(getattr(torch, dtype)).state_dict()
        loaded = load(saved(state), factory=f"usernet:{factory}")
        assert loaded.notes == (f"6 {dtype} tensors of weights.pth {became}",)
        assert loaded.program.conv.weight.dtype is getattr(torch, became.split()[-2])

    def test_another_kind_of_number(self) -> None:
        state = dict(net().state_dict())
        state["conv.weight"] = state["conv.weight"].to(torch.int8)
        assert "'conv.weight' is int8, but float32 in the module" in refused(saved(state))

    def test_modules_without_values(self) -> None:
        module = net()
        loaded = load(saved(module.state_dict()), factory="usernet:meta")
        assert same(loaded.program, module)
        assert not any(tensor.is_meta for tensor in loaded.program.state_dict().values())

    def test_what_no_file_has_values_for(self) -> None:
        message = refused(saved(net().state_dict()), factory="usernet:Hollow")
        assert message.startswith("weights.pth: has no values for steps, which the factory left on the meta")

    def test_names_that_only_a_wrapper_tells_apart(self) -> None:
        state = net().state_dict()
        state |= {f"module.{key}": value + 1 for key, value in net().state_dict().items()}
        assert "6 names unexpected (module.conv.weight" in refused(saved(state))

    def test_layers_that_take_their_shape_from_the_file(self) -> None:
        module = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        loaded = load(saved(module.state_dict()), factory="usernet:lazy")
        assert torch.equal(loaded.program[0].weight, module[0].weight)

    def test_tied_weights(self) -> None:
        module = load(factory="usernet:Tied").program
        state = dict(module.state_dict())
        assert same(load(saved(state), factory="usernet:Tied").program, module)
        del state["two.weight"]
        assert same(load(safetensors(state), factory="usernet:Tied").program, module)
        state["two.weight"] = state["one.weight"] + 1
        message = refused(saved(state), factory="usernet:Tied")
        assert "different values for 'one.weight' and 'two.weight', which are one parameter" in message

    @pytest.mark.parametrize("legacy", [False, True])
    def test_cut_off(self, legacy: bool) -> None:
        path = saved(net().state_dict(), _use_new_zipfile_serialization=not legacy)
        whole = Path(path).read_bytes()
        for part in (0.1, 0.5, 0.9, 0.99):
            Path(path).write_bytes(whole[: int(len(whole) * part)])
            assert "cut off or damaged" in refused(path)

    def test_safetensors_cut_off(self) -> None:
        path = safetensors(net().state_dict())
        whole = Path(path).read_bytes()
        for part in (0.1, 0.5, 0.9, 0.99):
            Path(path).write_bytes(whole[: int(len(whole) * part)])
            assert "cut off or damaged" in refused(path)


@pytest.mark.usefixtures("folder")
class TestFactories:
    @pytest.mark.parametrize(
        ("factory", "arguments", "channels"),
        [
            ("usernet:make", None, 4),
            ("usernet:make", {"channels": 5}, 5),
            ("usernet:make", [6, False], 6),
            ("usernet:Net", (7,), 7),
            ("usernet:Net.small", None, 2),
            ("usernet:instance", None, 4),
        ],
    )
    def test_built(self, factory: str, arguments: Any, channels: int) -> None:
        loaded = load(factory=factory, arguments=arguments)
        assert loaded.program.conv.out_channels == channels
        assert loaded.name == factory
        assert loaded.notes == (f"no file of weights: those that {factory} gave the module are used",)

    def test_what_is_in_a_wrapper(self) -> None:
        inside = "the module inside DataParallel and OptimizedModule is taken"
        loaded = load(factory="usernet:parallel")
        assert type(loaded.program).__name__ == "Net"
        assert loaded.notes[0] == inside
        module = net()
        loaded = load(saved(nn.DataParallel(module).state_dict()), factory="usernet:parallel")
        assert same(loaded.program, module)
        assert loaded.notes == (inside, "prefix 'module.' stripped from 7 names of weights.pth")

    def test_an_instance_of_the_users_is_left_alone(self) -> None:
        instance = load(factory="usernet:instance").program
        before = {key: value.clone() for key, value in instance.state_dict().items()}
        state = net().state_dict()
        loaded = load(saved(state), factory="usernet:instance").program
        assert loaded is not instance
        assert torch.equal(loaded.conv.weight, state["conv.weight"])
        assert all(torch.equal(before[key], value) for key, value in instance.state_dict().items())
        assert "cannot be copied (RuntimeError: not this one)" in refused(
            saved(state), factory="usernet:uncopied"
        )

    @pytest.mark.parametrize(
        ("factory", "said"),
        [
            ("usernet:fail", f"raised ValueError: no weights for (at {line('raise ValueError')})"),
            ("usernet:leave", f"raised SystemExit: 2 (at {line('raise SystemExit')})"),
            ("usernet:nothing", "returned None; it has to return a torch.nn.Module"),
            ("usernet:several", "returned a tuple of (Net, str); it has to return a torch.nn.Module"),
            ("usernet:uncalled", "returned the class Net itself; it has to return a torch.nn.Module"),
            ("usernet:number", "is an int; name a function that returns a torch.nn.Module"),
            (
                "usernet:nett",
                "usernet has no 'nett'; usernet offers Net, make, deep, fail, fail_in_torch, leave",
            ),
            ("usernet:Net.tall", "Net has no 'tall'; usernet offers Net"),
            ("usernet", "is no factory; write it as package.module:function"),
            ("usernet:", "is no factory; write it as package.module:function"),
            ("usernet:a b", "is no factory; write it as package.module:function"),
            ("./usernet.py:make", "names a file; write it as usernet:make with --pythonpath ."),
            ("sub/usernet.py", "names a file; write it as usernet:function with --pythonpath sub"),
        ],
    )
    def test_refused(self, factory: str, said: str) -> None:
        assert refused(factory=factory).startswith(f"--model {factory}: {said}")

    def test_the_line_is_the_users(self) -> None:
        message = refused(factory="usernet:fail_in_torch")
        assert message.startswith("--model usernet:fail_in_torch: raised RuntimeError: Expected 2D")
        assert message.endswith(f"(at {line('return nn.Conv1d')})")

    def test_no_line_when_none_is_the_users(self) -> None:
        message = refused(factory="torch.nn:Conv1d", arguments=[3, 4, 3, 1, "no such padding"])
        assert message.startswith("--model torch.nn:Conv1d: raised ValueError: Invalid padding string")
        assert "(at" not in message

    def test_arguments(self) -> None:
        assert refused(arguments={"depth": 3}) == (
            "--model usernet:make: got an unexpected keyword argument 'depth'; its arguments are "
            "(channels=4, bias=True), give them with --model-args"
        )
        assert "is a str; give a JSON object" in refused(arguments="channels")
        assert "is a module already" in refused(factory="usernet:instance", arguments=[1])

    def test_importing_fails(self) -> None:
        Path("usersys.py").write_text("import sys\n\nsys.exit('usage: …')\n")
        Path("userdep.py").write_text("\nimport no_such_library.part\n")
        Path("usersyntax.py").write_text("a = 1\nb = (\n")
        Path("userlate.py").write_text("1 / 0\n")
        assert refused(factory="usersys:f").endswith(
            "importing usersys failed: SystemExit: usage: … (at usersys.py:3)"
        )
        assert refused(factory="userdep:f") == (
            "--model userdep:f: needs no_such_library, which cannot be imported (at userdep.py:2); install "
            "it, or name its folder with --pythonpath"
        )
        assert "SyntaxError: '(' was never closed" in refused(factory="usersyntax:f")
        assert refused(factory="usersyntax:f").endswith("(at usersyntax.py:2)")
        assert refused(factory="userlate:f").endswith(
            "ZeroDivisionError: division by zero (at userlate.py:1)"
        )

    def test_the_current_folder_is_not_searched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
        assert refused(pythonpath=[]) == (
            "--model usernet:make: there is no module 'usernet'; usernet lies in the current folder, which "
            "is not searched by itself: add --pythonpath ."
        )
        assert refused(factory="userelse.deep:f", pythonpath=[]) == (
            "--model userelse.deep:f: there is no module 'userelse'; --pythonpath DIR names the folder of "
            "userelse (the current one is not searched by itself)"
        )
        assert "there is no module 'usernet.deep'" in refused(factory="usernet.deep:f")
        assert refused(pythonpath=["missing"]) == "--pythonpath missing: there is no such folder"

    def test_the_path_is_restored(self) -> None:
        before = list(sys.path)
        load()
        assert sys.path == before
        refused(factory="usernet:fail")
        assert sys.path == before

    def test_failures_leave_no_modules(self) -> None:
        Path("userpart.py").write_text("import userother\nimport no_such_library\n")
        Path("userother.py").write_text("")
        refused(factory="userpart:f")
        assert not {"userpart", "userother"} & set(sys.modules)
        Path("userpart.py").write_text("from torch import nn\ndef f(): return nn.ReLU()\n")
        assert isinstance(load(factory="userpart:f").program, nn.ReLU)

    def test_another_file_of_the_same_name(self) -> None:
        load()
        Path("sub").mkdir()
        Path("sub/usernet.py").write_text("make = 1\n")
        message = refused(pythonpath=["sub"])
        assert "'usernet' was imported before, from" in message
        assert message.endswith("usernet.py; rename the file")

    def test_warnings_are_the_users(self) -> None:
        Path("userwarn.py").write_text(
            "import warnings\nfrom torch import nn\n"
            "def f():\n    warnings.warn('mine')\n    return nn.ReLU()\n"
        )
        with pytest.warns(UserWarning, match="mine"):
            load(factory="userwarn:f")

    def test_nothing_given(self) -> None:
        assert (
            refused(factory=None)
            == "there is no model: give a file, or a function that builds one with --model"
        )
        assert refused(state_key="x").startswith("--state-key x: there is no file of weights")


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.usefixtures("folder")
class TestPickledModules:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_refused_with_the_classes(self, legacy: bool) -> None:
        with quiet():  # in the old format the source is stored too, and torch warns where it has none
            path = saved(net(), "whole.pt", _use_new_zipfile_serialization=not legacy)
        del sys.modules["usernet"]
        message = refused(path, factory=None)
        assert message == (
            "whole.pt: holds a pickled module, and loading it runs code (usernet.Net, "
            "torch.nn.modules.conv.Conv1d, torch.nn.modules.batchnorm.BatchNorm1d); save a state dict "
            "instead (torch.save(model.state_dict(), path)) and name its module with --model, or pass "
            "--unsafe-pickle if you trust whoever made the file"
        )
        assert "usernet" not in sys.modules

    @pytest.mark.parametrize("options", [{}, {"factory": None}, {"state_key": "a"}])
    def test_nothing_runs(self, options: dict[str, Any]) -> None:
        for content in (Touch("mark"), {"a": net(), "b": Touch("mark")}, [torch.ones(1), Touch("mark")]):
            assert "system" in refused(saved(content), **options)
        assert not Path("mark").exists()

    def test_odd_classes_beside_tensors(self) -> None:
        message = refused(saved({"model": net().state_dict(), "args": Path("x")}))
        assert "holds pickled objects besides tensors, and loading it runs code (pathlib" in message

    def test_trusted(self) -> None:
        module = net()
        path = saved(module, "whole.pt")
        assert same(load(path, factory=None, unsafe_pickle=True).program, module)
        assert same(load(path, unsafe_pickle=True).program, module), "its weights, into the factory's module"
        nested = saved({"model": module, "epoch": 3})
        loaded = load(nested, factory=None, unsafe_pickle=True)
        assert same(loaded.program, module)
        assert loaded.notes == ("state dict taken from 'model' of weights.pth",)

    def test_trusted_but_without_its_code(self) -> None:
        path = saved(net(), "whole.pt")
        del sys.modules["usernet"]
        message = refused(path, factory=None, pythonpath=[], unsafe_pickle=True)
        assert message.startswith("whole.pt: its pickle needs code that is not there (ModuleNotFoundError")
        assert message.endswith("name its folder with --pythonpath")
        assert isinstance(load(path, factory=None, unsafe_pickle=True).program, nn.Module)

    def test_trusted_state_dicts_stay_what_they_are(self) -> None:
        assert "holds weights" in refused(saved(net().state_dict()), factory=None, unsafe_pickle=True)


class Plain(nn.Module):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3, **options)

    def forward(self, x: Any) -> Any:
        return self.bn(x)


@pytest.mark.usefixtures("folder")
class TestTorchScript:
    def scripted(self) -> nn.Module:
        """From a file: the script compiler reads comments, those for mypy too."""
        return load(factory="usernet:Scripted").program

    def script(self, module: nn.Module, *, trace: bool = False) -> str:
        with quiet():
            made = (
                torch.jit.trace(module, torch.randn(2, 3, 8), check_trace=False)
                if trace
                else torch.jit.script(module)
            )
            torch.jit.save(made, "script.pt")
        return "script.pt"

    def test_behind_its_flag(self) -> None:
        path = self.script(self.scripted())
        assert refused(path, factory=None) == (
            "script.pt: is a TorchScript archive (torch.jit.save), which runs the code that it holds; pass "
            "--torchscript to load it"
        )
        loaded = load(path, factory=None, torchscript=True)
        assert isinstance(loaded.program, torch.jit.ScriptModule)
        assert loaded.notes == ()

    @pytest.mark.parametrize("train", [False, True])
    def test_scripts_obey(self, train: bool) -> None:
        """In whatever mode they were saved."""
        module = self.scripted().train(train)
        program = load(self.script(module), factory=None, torchscript=True).program
        assert program.training is train
        x = torch.randn(2, 3, 8)
        assert torch.equal(program.eval()(x), module.eval()(x))

    def test_traces_of_training_do_not(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the branch: it is not taken otherwise
            path = self.script(self.scripted().train(), trace=True)
        assert refused(path, factory=None, torchscript=True) == (
            "script.pt: its batch_norm and dropout will go on training whatever mode is set, as when it was "
            "traced; call model.eval() before torch.jit.trace, and save it again"
        )

    @pytest.mark.parametrize(
        ("module", "baked"),
        [
            (Plain().eval(), False),
            (Plain().train(), True),
            # it has no other way to normalize
            (Plain(track_running_stats=False).eval(), False),
            (Plain(track_running_stats=False).train(), False),
            (nn.Dropout(0.0).train(), False),
            (nn.Dropout().train(), True),
            (nn.InstanceNorm1d(3).train(), False),
            (nn.InstanceNorm1d(3, track_running_stats=True).eval(), False),
            (nn.InstanceNorm1d(3, track_running_stats=True).train(), True),
            (nn.LSTM(8, 4, num_layers=2, dropout=0.5).eval(), False),
            (nn.LSTM(8, 4, num_layers=2, dropout=0.5).train(), True),
            (nn.LSTM(8, 4).train(), False),
        ],
    )
    def test_traces(self, module: nn.Module, baked: bool) -> None:
        path = self.script(module, trace=True)
        if baked:
            assert "will go on training" in refused(path, factory=None, torchscript=True)
        else:
            load(path, factory=None, torchscript=True)

    def test_fixed_in_a_branch(self) -> None:
        path = self.script(load(factory="usernet:Fixed").program)
        message = refused(path, factory=None, torchscript=True)
        assert message.startswith("script.pt: its dropout will go on training")

    def test_carries_its_own_code(self) -> None:
        path = self.script(self.scripted())
        message = "script.pt: is a TorchScript archive (torch.jit.save), which needs no other code; drop"
        assert refused(path, torchscript=True) == f"{message} --model"
        assert refused(path, arguments=[], state_key="a").endswith("--model and --model-args and --state-key")

    def test_damaged(self) -> None:
        path = self.script(self.scripted())
        whole = Path(path).read_bytes()
        middle = whole.index(b"data.pkl") + 60
        Path(path).write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
        assert "cut off or damaged" in refused(path, factory=None, torchscript=True)

    def test_from_a_factory(self) -> None:
        Path("userscript.py").write_text(
            textwrap.dedent("""
            import torch
            def f():
                return torch.jit.trace(torch.nn.Dropout().train(), torch.ones(3), check_trace=False)
            """)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert "userscript:f: its dropout will go on training" in refused(factory="userscript:f")
