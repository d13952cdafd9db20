"""Run the sample jobs in an image as the platform runs them, and compare their results.

    python3 test/container.py ENGINE IMAGE MODEL.tar.gz

ENGINE is docker or podman. The flags are those of the platform and of its templates. An image with the label of the
invoke mode is started once; between its two jobs comes one that must fail. The models mounted are those of the archive
and, for the last job, a folder that holds a README alone, as starter packs have it. The standard library alone.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from compare import HALF_PRECISION
from compare import main as compare

TEST = Path(__file__).resolve().parent
JOBS = ("track1", "track2")
LABEL = "org.grand-challenge.api-method"
MEMORY = "8g"
FLAGS = [
    *("--platform", "linux/amd64", "--init", "--network", "none", "--read-only", "--tmpfs", "/tmp"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--pids-limit", "128"),
    *("--memory", MEMORY, "--memory-swap", MEMORY, "--shm-size", "4g"),
]
HEALTHY_WITHIN, ENDED_WITHIN = 300, 5  # seconds, the platform's
# Without a network only the container itself reaches its port.
CALL = """
import http.client, sys
try:
    connection = http.client.HTTPConnection("127.0.0.1", 4743)
    connection.request(*sys.argv[1:])
    print(connection.getresponse().status)
except OSError:
    print(0)
"""


class ImageError(Exception):
    """What the image did not do, in a line."""


class Box:
    """The folders that are mounted, and the containers that run with them.

    Args:
        engine: docker or podman.
        image: its name.
        folder: an empty one.
        archive: of models.
    """

    def __init__(self, engine: str, image: str, folder: Path, archive: Path) -> None:
        self.engine, self.image = engine, image
        self.input, self.output, self.model = (folder / name for name in ("input", "output", "model"))
        for each in (self.input, self.output, self.model):
            each.mkdir()
        self.output.chmod(0o777)  # the image's user is nobody here
        with tarfile.open(archive) as packed:
            packed.extractall(self.model)
        make_readable(self.model)

    def started(self, *flags: str) -> list[str]:
        """The command that runs the image."""
        mounts = [f"{self.input}:/input:ro", f"{self.output}:/output", f"{self.model}:/opt/ml/model:ro"]
        return [
            self.engine,
            "run",
            *flags,
            *FLAGS,
            *(word for each in mounts for word in ("--volume", each)),
            self.image,
        ]

    def provide(self, job: str) -> None:
        """Empty both folders, and put a job's files into /input, readable for everybody."""
        for each in (*self.input.iterdir(), *self.output.iterdir()):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        shutil.copytree(TEST / "input" / job, self.input, dirs_exist_ok=True)
        make_readable(self.input)

    def check(self, job: str, seconds: float) -> None:
        """Compare the result of a job."""
        print(f"{self.image}, {job}: {seconds:.1f} s", flush=True)
        if compare(TEST / "expected" / job, self.output, HALF_PRECISION):
            raise ImageError(f"{job}: not the expected result")

    def without_models(self) -> None:
        """What a starter pack has for a model folder."""
        for each in self.model.iterdir():
            shutil.rmtree(each)
        (self.model / "README.md").write_text("Put your model here.\n")


def make_readable(folder: Path) -> None:
    """For the image's user, whatever the umask here."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def run_exec(box: Box) -> None:
    """A process for each job."""
    for job in JOBS:
        box.provide(job)
        if job == JOBS[-1]:
            box.without_models()
        start = time.monotonic()
        code = subprocess.run(box.started("--rm"), check=False).returncode
        if code:
            raise ImageError(f"{job}: exit code {code}")
        box.check(job, time.monotonic() - start)


def run_invoke(box: Box) -> None:
    """One process for all jobs."""
    name = f"midog-{box.output.parent.name}"

    def call(method: str, path: str) -> int:
        command = [box.engine, "exec", name, "python", "-c", CALL, method, path]
        answer = subprocess.run(command, check=False, capture_output=True, text=True)
        return int(answer.stdout) if answer.returncode == 0 else 0

    start = time.monotonic()
    subprocess.run(box.started("--detach", "--name", name), check=True, stdout=subprocess.DEVNULL)
    try:
        while call("GET", "/health") != 200:
            if time.monotonic() - start > HEALTHY_WITHIN:
                raise ImageError(f"not healthy within {HEALTHY_WITHIN} s")
            time.sleep(0.5)
        print(f"{box.image}: healthy after {time.monotonic() - start:.1f} s", flush=True)
        for job in (JOBS[0], None, *JOBS[1:]):
            box.provide(job or JOBS[0])
            if job is None:
                (image,) = box.input.glob("images/*/*")
                image.write_bytes(image.read_bytes()[:1000])
            start = time.monotonic()
            status = call("POST", "/invoke")
            if status != (201 if job else 500):
                raise ImageError(f"{job or 'a truncated image'}: status {status}")
            if job:
                box.check(job, time.monotonic() - start)
        start = time.monotonic()
        subprocess.run([box.engine, "stop", "-t", "30", name], check=True, stdout=subprocess.DEVNULL)
        if (seconds := time.monotonic() - start) > ENDED_WITHIN:
            raise ImageError(f"ended {seconds:.1f} s after SIGTERM, {ENDED_WITHIN} allowed")
        print(f"{box.image}: ended {seconds:.1f} s after SIGTERM")
    finally:
        subprocess.run([box.engine, "logs", name], check=False)
        subprocess.run([box.engine, "rm", "--force", name], check=False, stdout=subprocess.DEVNULL)


def main(engine: str, image: str, archive: str) -> int:
    config = json.loads(subprocess.check_output([engine, "inspect", "--format", "{{json .Config}}", image]))
    run = run_invoke if (config.get("Labels") or {}).get(LABEL) == "invoke" else run_exec
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(Box(engine, image, Path(folder), Path(archive)))
        except ImageError as error:
            print(f"error: {image}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
