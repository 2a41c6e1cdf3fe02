"""Loads the function of a job from the user's source, and describes how the user's code failed."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from flywheel_job.errors import InvalidFunction, TrainingFailed

TRACEBACK_LINES = 40
MESSAGE_CHARACTERS = 8000
PACKAGE = Path(__file__).parents[1]


def load_function(name: str, root: Path | None = None) -> Callable[[Any], Any]:
    """The function `path/file.py:function` below `root`, or `package.module:function` if it is installed.

    Raises InvalidFunction if the file or the function is missing, or the function does not accept exactly one
    argument (`ctx`), and TrainingFailed with the user's traceback if the import raises.
    """
    module_name, separator, attribute = name.partition(":")
    if not separator or not attribute.isidentifier():
        raise InvalidFunction(f"{name!r} is not of the form file.py:function.")
    file = module_name if module_name.endswith(".py") else ""
    if file:
        module_name = _module_of_file(file, root)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise InvalidFunction(f"There is no module {module_name!r}, which {name!r} names.") from None
        raise failure(error) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything
        raise failure(error) from None
    if file and _is_installed(module):
        raise InvalidFunction(
            f"{file!r} has the name of the module {module_name!r} of Python: rename the file."
        )
    function = getattr(module, attribute, None)
    if function is None:
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise InvalidFunction(
            f"{name.partition(':')[0]} has no function {attribute!r}; it has: {', '.join(known) or 'none'}."
        )
    _check_signature(name, function)
    return function


def _module_of_file(path: str, root: Path | None) -> str:
    """The module name of a file; its root becomes the first entry of `sys.path`."""
    if root is None:
        raise InvalidFunction(f"{path!r} names a file, but the job has no source archive.")
    if not (root / path).is_file() or not (root / path).resolve().is_relative_to(root.resolve()):
        raise InvalidFunction(f"The source archive has no file {path!r}.")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    return path.removesuffix(".py").replace("/", ".")


def _is_installed(module: ModuleType) -> bool:
    """Whether it is a module of Python or of an installed package."""
    origin = Path((module.__spec__ and module.__spec__.origin) or "built-in")
    folders = (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return not origin.is_absolute() or any(map(origin.is_relative_to, folders))


def _check_signature(name: str, function: Any) -> None:
    """Raises InvalidFunction unless the function can be called with one positional argument."""
    if not callable(function):
        raise InvalidFunction(f"{name} is a {type(function).__name__}, not a function.")
    if inspect.iscoroutinefunction(function):
        raise InvalidFunction(f"{name} is async; a job calls an ordinary function.")
    try:
        signature = inspect.signature(function)
        signature.bind(object())
    except TypeError:
        raise InvalidFunction(
            f"{name} has the signature {name.partition(':')[2]}{signature}, "
            "but it is called with one argument: ctx."
        ) from None
    except ValueError:
        return  # a builtin without a signature: the call itself shows whether it fits


def failure(error: BaseException) -> TrainingFailed:
    """The error of a job whose code raised `error`: its last lines, without the frames of this package."""
    entries = traceback.TracebackException.from_exception(error)
    own = [frame for frame in entries.stack if Path(frame.filename).is_relative_to(PACKAGE)]
    outside = [frame for frame in entries.stack if frame not in own and "importlib" not in frame.filename]
    if outside:
        entries.stack = traceback.StackSummary.from_list(outside)
    lines = "".join(entries.format()).replace("\0", "\\0").splitlines()
    text = "\n".join(lines[-TRACEBACK_LINES:])
    return TrainingFailed(text[-MESSAGE_CHARACTERS:])
