"""What the model name of a request addresses.

`projects/{project}/models/{model}` is the model as it is released: entity keys in, answers out.
`projects/{project}/models/{model}/versions/{version}`, or the model's name with a model_version, is one model
version: raw tensors in and out.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.errors import InvalidName
from flywheel_common.names import Pattern
from flywheel_inference.serving.state import MODEL_NAME

VERSION_NAME = Pattern("projects/{project}/models/{model}/versions/{version:int}")


@dataclass(frozen=True, slots=True)
class Address:
    """A model, or one of its versions. `model_version`: name of the version; empty: the released model."""

    model: str
    model_version: str = ""

    @property
    def version(self) -> str:
        """The number of the version; empty: the released model."""
        return self.model_version.rpartition("/")[2]


def address(name: str, version: str) -> Address:
    """The address of a name and a model_version. Raises InvalidName."""
    if VERSION_NAME.match(name) is not None:
        model = name.rpartition("/versions/")[0]
        if version and f"{model}/versions/{version}" != name:
            raise InvalidName(f"{name} is another version than {version[:100]}.", expected=VERSION_NAME.form)
        return Address(model, name)
    MODEL_NAME.parse(name)
    if not version:
        return Address(name)
    full = f"{name}/versions/{version}"
    VERSION_NAME.parse(full)
    return Address(name, full)
