"""MIDOG 2025: mitotic figures found and told apart.

    >>> import midog
    >>> system = midog.load("centernet_two_stages")  # or midog.load(track=1), the default
    >>> found = system.predict("region.tiff")     # a path, a uint8 array or a PIL image; mpp=.25 where it is not known
    >>> found.centres[found.accepted]             # px

`midog.load("efficientnet_lite0").classify(crops)` gives P(atypical) of uint8 (N, 128, 128, 3).
"""

from typing import TYPE_CHECKING, Any

__version__ = "1.11.0"

if TYPE_CHECKING:
    from midog.detections import Detections
    from midog.run import load

__all__ = ["Detections", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What a program takes from here, imported when it is asked for, so that a command's start pays for nothing."""
    if name == "load":
        from midog.run import load

        return load
    if name == "Detections":
        from midog.detections import Detections

        return Detections
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
