"""The platform's "Models" upload: the folder model/ as a .tar.gz, the same bytes from the same files.

    python3 resources/model_archive.py FILE.tar.gz

Names in their order, everybody may read, and no owner or time is kept. The standard library alone, because it is run
where a container is built.
"""

import gzip
import sys
import tarfile
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "model"


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive without what differs between two clones."""
    member.mode = 0o755 if member.isdir() else 0o644
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def pack(folder: Path, path: Path) -> None:
    """Write all systems of a folder, below it as they are, into an archive; hidden and unfinished files stay behind."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(mode="w", fileobj=packed, format=tarfile.GNU_FORMAT) as archive,
    ):
        for each in sorted(folder.glob("*/[!.]*")):
            if each.suffix != ".part":
                archive.add(each, str(each.relative_to(folder)), recursive=False, filter=plain)


if __name__ == "__main__":
    pack(MODEL, Path(sys.argv[1]))
