"""What the platform checks of an image when it is uploaded, before it is.

    python3 test/upload.py IMAGE.tar.gz

(comic/grand-challenge.org, app/grandchallenge/components/tasks.py and settings.py, 2026.) The standard library alone.
"""

import json
import sys
import tarfile
from pathlib import Path

LABEL = "org.grand-challenge.api-method"
LARGEST = 10 * 1024**3  # bytes, COMPONENTS_MAXIMUM_IMAGE_SIZE
SMALL = 1024**2  # bytes; manifest and configurations are smaller, layers are not kept


def images_of(path: Path) -> list[dict]:
    """The configuration of each image in an archive of `docker save`; [] where it is none."""
    with tarfile.open(path) as archive:
        small = {each.name: archive.extractfile(each).read() for each in archive if each.isfile() and each.size < SMALL}
    return [json.loads(small[image["Config"]]) for image in json.loads(small.get("manifest.json", "[]"))]


def checks(size: int, images: list[dict]) -> list[tuple[str, bool]]:
    """What is checked, with what was found, and whether it passes.

    Args:
        size: of the file, bytes.
        images: of `images_of`.
    """
    found = [(f"{size / 1e9:.2f} GB, at most {LARGEST / 1e9:.2f}", size <= LARGEST)]
    found += [(f"{len(images)} image, exactly one", len(images) == 1)]
    for image in images:
        config = image.get("config", {})
        user = str(config.get("User") or "")
        method = str((config.get("Labels") or {}).get(LABEL, "exec"))
        found += [
            (f"architecture {image.get('architecture')}, amd64", image.get("architecture") == "amd64"),
            (f"user {user or 'none'}, not root", user.lower().split(":")[0] not in ("", "root", "0")),
            (f"{LABEL} {method}, exec or invoke", method in ("exec", "invoke")),
            ("an entry point or a command", bool(config.get("Entrypoint") or config.get("Cmd"))),
        ]
    return found


def main(name: str) -> int:
    path = Path(name)
    try:
        images = images_of(path)
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as error:
        print(f"error: {path}: no archive of docker save ({error}); run ./export.sh again", file=sys.stderr)
        return 1
    found = checks(path.stat().st_size, images)
    for text, passes in found:
        print(f"{'passes' if passes else 'FAILS '}  {text}")
    return 0 if all(passes for _, passes in found) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
