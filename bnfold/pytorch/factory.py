"""The user's own code that builds a module: `package.module:function`, imported and called.

The current folder is not searched, as everywhere where somebody else's file must not be imported by accident:
folders are named. What goes wrong in the user's code is told in one line, with the line where it happened.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Built:
    """What a factory gave.

    Attributes:
        module: The `torch.nn.Module`.
        shared: Whether it was there before: the attribute is a module itself, no function that makes one.
    """

    module: Any
    shared: bool


@contextmanager
def importable(folders: Sequence[str]) -> Iterator[None]:
    """Put folders in front of the import path for a while.

    Modules that were imported from them stay, unless an exception leaves the context.

    Raises:
        InputError: One of them is no folder.
    """
    if isinstance(folders, str):
        folders = (folders,)
    for folder in folders:
        if not os.path.isdir(folder):
            raise InputError(f"--pythonpath {folder}: there is no such folder")
    added = [os.path.abspath(folder) for folder in folders]
    path, modules = list(sys.path), set(sys.modules)
    sys.path[:0] = added
    importlib.invalidate_caches()  # files may be younger than the folder's listing
    try:
        yield
    except BaseException:
        # Elsewhere belong libraries, which can be imported only once: they register operators.
        for name in set(sys.modules) - modules:
            if any(_lies_in(sys.modules[name], folder) for folder in added):
                del sys.modules[name]
        raise
    finally:
        sys.path[:] = path


def build(spec: str, arguments: Mapping[str, Any] | Sequence[Any] | None = None) -> Built:
    """Import and call a factory; a module instead of a function is taken as it is.

    Args:
        spec: `package.module:attribute.path`.
        arguments: Keywords, or positional ones.

    Raises:
        InputError: It cannot be imported, it raises, or it gives no module.
    """
    module_name, attribute = _parts(spec)
    positional, keywords = _arguments(arguments)
    target = _attribute(spec, _imported(spec, module_name), attribute)
    if isinstance(target, torch.nn.Module):
        if arguments:
            raise InputError(
                f"--model {spec}: is a module already, so it takes no arguments; drop --model-args"
            )
        return Built(target, shared=True)
    if not callable(target):
        raise InputError(
            f"--model {spec}: is {described(target)}; name a function that returns a torch.nn.Module"
        )
    made = _called(spec, target, positional, keywords)
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"--model {spec}: returned {described(made)}; it has to return a torch.nn.Module")
    return Built(made, shared=False)


def _parts(spec: str) -> tuple[str, str]:
    module_name, colon, attribute = spec.partition(":")
    if module_name.endswith(".py") or "/" in module_name or os.sep in module_name:
        file = Path(module_name)
        raise InputError(
            f"--model {spec}: names a file; write it as {file.stem}:{attribute or 'function'} "
            f"with --pythonpath {file.parent}"
        )
    names = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        raise InputError(f"--model {spec}: is no factory; write it as package.module:function")
    return module_name, attribute


def _arguments(arguments: Mapping[str, Any] | Sequence[Any] | None) -> tuple[list[Any], dict[str, Any]]:
    if arguments is None:
        return [], {}
    if isinstance(arguments, Mapping):
        return [], dict(arguments)
    if isinstance(arguments, Sequence) and not isinstance(arguments, str | bytes):
        return list(arguments), {}
    raise InputError(
        f"--model-args: is {described(arguments)}; give a JSON object (keywords) or array (positional)"
    )


def _imported(spec: str, name: str) -> ModuleType:
    _need_same(spec, name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"--model {spec}: there is no module {error.name!r}; {_hint(name)}") from error
        raise InputError(
            f"--model {spec}: needs {error.name or error}, which cannot be imported{_at(error)}; install it, "
            "or name its folder with --pythonpath"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module that reads the command line ends with SystemExit
        raise InputError(f"--model {spec}: importing {name} failed: {said(error)}{_at(error)}") from error


def _need_same(spec: str, package: str) -> None:
    """Python imports a name once per process; a second folder with the same name would be overlooked."""
    loaded = sys.modules.get(package)
    if loaded is None:
        return
    found = importlib.machinery.PathFinder.find_spec(package, sys.path)
    file = getattr(loaded, "__file__", None)
    if found and found.origin and file and not os.path.samefile(found.origin, file):
        raise InputError(
            f"--model {spec}: {package!r} was imported before, from {file}, and hides {found.origin}; "
            "rename the file"
        )


def _hint(name: str) -> str:
    top = name.partition(".")[0]
    if not (os.path.isfile(f"{top}.py") or os.path.isdir(top)):
        return f"--pythonpath DIR names the folder of {top} (the current one is not searched by itself)"
    if os.path.abspath(os.curdir) in sys.path:
        return f"the current folder holds {top}, but nothing of that name in it"
    return f"{top} lies in the current folder, which is not searched by itself: add --pythonpath ."


def _attribute(spec: str, module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            owner = found.__name__ if isinstance(found, ModuleType | type) else described(found)
            raise InputError(f"--model {spec}: {owner} has no {name!r}; {_offers(module)}") from None
    return found


def _offers(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and callable(value)
    ]
    where = f"it was imported from {module.__file__}" if getattr(module, "__file__", None) else ""
    return f"{module.__name__} offers {', '.join(own[:6])}" if own else where or "check the name"


def _called(spec: str, factory: Callable[..., Any], positional: list[Any], keywords: dict[str, Any]) -> Any:
    try:
        signature = inspect.signature(factory)
        signature.bind(*positional, **keywords)
    except TypeError as error:
        raise InputError(
            f"--model {spec}: {error}; its arguments are {signature}, give them with --model-args"
        ) from None
    except ValueError:
        pass  # built-in functions have no signature
    try:
        return factory(*positional, **keywords)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"--model {spec}: raised {said(error)}{_at(error)}") from error


def described(value: object) -> str:
    """What a value is, for a message: "a dict", "a tuple of (Net, int)"."""
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        inside = ", ".join(type(v).__name__ for v in value[:4])
        return f"a {type(value).__name__} of ({inside})" if inside else f"an empty {type(value).__name__}"
    if isinstance(value, type):
        return f"the class {value.__qualname__} itself"
    if isinstance(value, Mapping) and not value:
        return f"an empty {type(value).__name__}"
    name = type(value).__qualname__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def said(error: BaseException) -> str:
    """Type and first line of an exception."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def _at(error: BaseException) -> str:
    """Where in the user's code it happened: " (at net.py:12)"."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (at {_short(error.filename)}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    theirs = os.path.dirname(os.path.abspath(torch.__file__))
    frames = [f for f in frames if not f.filename.startswith((ours + os.sep, theirs + os.sep))]
    installed = tuple(path + os.sep for path in set(sysconfig.get_paths().values()))
    own = [f for f in frames if not f.filename.startswith(installed)] or frames
    return f" (at {_short(own[-1].filename)}:{own[-1].lineno})" if own else ""


def _short(file: str) -> str:
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative


def _lies_in(module: ModuleType, folder: str) -> bool:
    places = [getattr(module, "__file__", None), *list(getattr(module, "__path__", ()))]
    return any(isinstance(p, str) and os.path.abspath(p).startswith(folder + os.sep) for p in places)
