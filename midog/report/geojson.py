"""GeoJSON as QuPath (0.4 and later, and before) exports it, checked where it is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from midog.errors import UserError, one_line
from midog.files import read_json

Converted = TypeVar("Converted")


@dataclass(frozen=True)
class Geometry:
    type: str
    coordinates: Any = None


@dataclass(frozen=True)
class Classification:
    """QuPath has `names` where there are several, which it shows joined."""

    name: str | None = None
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name or ": ".join(self.names)


@dataclass(frozen=True)
class Measurement:
    name: str
    value: Any = None


@dataclass(frozen=True)
class Properties:
    """`measurements` is a list before QuPath 0.4."""

    name: str | None = None
    classification: Classification | None = None
    measurements: dict[str, Any] | list[Measurement] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Feature:
    type: Literal["Feature"]
    geometry: Geometry | None = None
    properties: Properties | None = None

    @property
    def kind(self) -> str:
        return self.geometry.type if self.geometry else "without geometry"

    @property
    def coordinates(self) -> Any:
        return self.geometry and self.geometry.coordinates

    @property
    def said(self) -> Properties:
        return self.properties or Properties()

    @property
    def class_name(self) -> str:
        return str(self.said.classification or "")


def read_geojson(path: Path, remedy: str) -> tuple[dict[str, Any], list[Feature]]:
    """The features of a GeoJSON file: of a collection, a list, or the one that there is.

    Args:
        path: of the file.
        remedy: what to give instead, for the message.

    Returns:
        What stands beside the features in a collection (else nothing), and the features.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    content = read_json(path, remedy)
    head = content if isinstance(content, dict) else {}
    kind = head.get("type")
    features = head.get("features") if kind == "FeatureCollection" else [content] if kind == "Feature" else content
    if not isinstance(features, list) or not all(isinstance(each, dict) for each in features):
        raise UserError(f"{path}: not GeoJSON, no FeatureCollection and no Feature; {remedy}")
    return head, converted(path, features, list[Feature], remedy)


def converted(path: Path, value: Any, kind: type[Converted], remedy: str) -> Converted:
    """A value of a GeoJSON file as a type of msgspec's.

    Raises:
        UserError: it is none.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(one_line(f"{path}: not GeoJSON as QuPath writes it ({error}); {remedy}")) from None
