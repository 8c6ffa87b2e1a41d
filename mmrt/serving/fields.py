"""The fields of a request's body, when their kinds have checked them."""

from collections.abc import Mapping
from typing import Any

from mmrt.serving.kinds import bad, missing
from mmrt.serving.problems import Refused


class Fields:
    """An object of a request's body. null stands for a field that is not there."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        """where: the object's own name, for errors."""
        self._values = values
        self._where = where

    def name(self, field: str) -> str:
        return f"{self._where}.{field}" if self._where else field

    def bad(self, field: str, wanted: str) -> Refused:
        return bad(self.name(field), wanted, self._values.get(field))

    def has(self, field: str) -> bool:
        return self._values.get(field) is not None

    def get(self, field: str, default: Any = None) -> Any:
        value = self._values.get(field)
        return default if value is None else value

    def require(self, field: str) -> None:
        if not self.has(field):
            raise missing(self.name(field))

    def object(self, field: str) -> "Fields":
        """An empty one where it is not there."""
        return Fields(self.get(field, {}), self.name(field))

    def objects(self, field: str) -> list["Fields"]:
        """A list of objects, empty where it is not there."""
        listed = self.get(field, [])
        return [Fields(one, f"{self.name(field)}[{i}]") for i, one in enumerate(listed)]

    def plain(self) -> dict[str, Any]:
        """All of it."""
        return dict(self._values)
