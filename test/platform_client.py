"""The platform's public client, sagemaker-shim, against both ways of calling the container; see platform_client.sh.

    python test/platform_client.py PYTHON DIR

PYTHON runs inference.py, and DIR takes the client's folders. The exit code is 1 if anything is not as it should be.
"""

import asyncio
import json
import logging
import os
import shutil
import statistics
import sys
import time
from base64 import b64encode
from datetime import timedelta
from pathlib import Path

import boto3
import httpx
from compare import HALF_PRECISION
from compare import main as compare
from moto.server import ThreadedMotoServer
from sagemaker_shim.models import InferenceIO, InferenceTask, UserProcess, get_s3_resources

ROOT = Path(__file__).resolve().parents[1]
BUCKET, PORT = "cases", 4743
TIMED, REMEMBERED = 5, 200  # cases
CLIENT_SLEEPS = 1.0  # seconds, behind each call of /invoke
GROWTH = 1.05  # of the median of memory, from the cases around the 20th to the last
JOBS = {"track1": ROOT / "test/input/track1", "track2": ROOT / "test/input/track2"}


class Checks:
    """Lines of what holds and what does not."""

    failed = 0

    def __call__(self, holds, line):
        print("ok  " if holds else "FAIL", line, flush=True)
        self.failed += not holds


class Platform:
    """The client with its folders and its S3.

    Args:
        python: runs inference.py.
        folder: takes all that the client and the process write.
    """

    def __init__(self, python, folder):
        self.folder, self.cases = folder, 0
        self.process_arguments = [python, "inference.py", "--input", f"{folder}/input", "--output", f"{folder}/output"]
        self.jobs = JOBS | {"truncated": folder / "truncated"}
        shutil.copytree(JOBS["track2"], self.jobs["truncated"])
        image = next(self.jobs["truncated"].glob("images/*/*"))
        image.write_bytes(image.read_bytes()[:-20_000])
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "client",
            "AWS_SECRET_ACCESS_KEY": "client",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_S3_ENDPOINT_URL": f"http://{host}:{port}",
            "NO_PROXY": "127.0.0.1",
            "GRAND_CHALLENGE_COMPONENT_INPUT_PATH": f"{folder}/input",
            "GRAND_CHALLENGE_COMPONENT_LINKED_INPUT_PARENT": f"{folder}/linked",
            "GRAND_CHALLENGE_COMPONENT_OUTPUT_PATH": f"{folder}/output",
            "GRAND_CHALLENGE_COMPONENT_USER_WEBSERVER_PORT": str(PORT),
            "GRAND_CHALLENGE_COMPONENT_HEALTH_CHECK_CALL_TIMEOUT_SECONDS": "1",
        }
        self.s3 = boto3.client("s3", endpoint_url=os.environ["AWS_S3_ENDPOINT_URL"])
        self.s3.create_bucket(Bucket=BUCKET)
        for name, job in self.jobs.items():
            for path in self.files(name):
                self.s3.upload_file(str(job / path), BUCKET, f"{name}/{path}")

    def files(self, name):
        """Of a job, relative to its folder."""
        return [path.relative_to(self.jobs[name]) for path in self.jobs[name].rglob("*") if path.is_file()]

    def process(self, method, *arguments):
        """A process of the client's, which reads the environment whenever it is used: one method at a time."""
        command = json.dumps([*self.process_arguments, *arguments])
        os.environ["GRAND_CHALLENGE_COMPONENT_API_METHOD"] = method
        os.environ["GRAND_CHALLENGE_COMPONENT_ENTRYPOINT_B64J"] = b64encode(command.encode()).decode()
        return UserProcess()

    async def run(self, name, process):
        """Run a case as the platform does; the client's result, and the folder of what it uploaded."""
        self.cases += 1
        results = self.folder / "results" / str(self.cases)
        results.mkdir(parents=True)
        task = InferenceTask(
            pk=str(self.cases),
            inputs=[
                InferenceIO(relative_path=path, bucket_name=BUCKET, bucket_key=f"{name}/{path}")
                for path in self.files(name)
            ],
            output_bucket_name=BUCKET,
            output_prefix=f"results/{self.cases}",
            timeout=timedelta(minutes=20),
        )
        async with get_s3_resources() as resources:
            result = await task.run_inference(user_process=process, s3_resources=resources)
        for output in result.outputs:
            self.s3.download_file(BUCKET, output.bucket_key, str(results / output.relative_path))
        return result, results


def content(folder):
    """Of the files in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def memory_mib(process):
    """Resident memory of a process."""
    text = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def is_healthy(process):
    return process.healthy and httpx.get(f"http://127.0.0.1:{PORT}/health", timeout=1).status_code == 200


async def ask_exec(platform, check):
    """Cases of one process each; the files of a case of each track."""
    process = platform.process("exec")
    await process.setup()
    contents, seconds = {}, []
    for name in ["track1", *["track2"] * TIMED]:
        result, folder = await platform.run(name, process)
        contents[name] = content(folder)
        seconds.append(result.exec_duration.total_seconds())
        if len(seconds) <= 2:
            same = result.return_code == 0 and compare(ROOT / "test/expected" / name, folder, HALF_PRECISION) == 0
            check(same, f"exec: {name}")
    result, _ = await platform.run("truncated", process)
    check_refused(check, "exec", result)
    print(f"exec: {statistics.median(seconds[1:]):.2f} s a Track 2 job, median of {TIMED}; Track 1 {seconds[0]:.2f} s")
    return contents


def check_refused(check, method, result):
    lines = [line for line in result.user_process_last_stderr_lines if line.strip()]
    check(result.return_code == 1 and not result.outputs, f"{method}: a truncated image has return code 1, no output")
    check(
        len(lines) == 1 and lines[0].startswith("error: "), f"{method}: its lines on stderr: {''.join(lines).strip()}"
    )


async def ask_invoke(platform, check, expected):
    """Cases of one process."""
    process = platform.process("invoke", "--serve", str(PORT))
    started = time.monotonic()
    await process.setup()
    check(
        is_healthy(process),
        f"invoke: healthy after {time.monotonic() - started:.1f} s, memory {memory_mib(process):.0f} MiB",
    )
    seconds, memory = {"track1": [], "track2": []}, []

    async def answered(name):
        result, folder = await platform.run(name, process)
        seconds[name].append(result.invoke_duration.total_seconds() - CLIENT_SLEEPS)
        memory.append(memory_mib(process))
        return result.return_code == 0 and content(folder) == expected[name]

    for name in ("track2", "track1"):
        check(await answered(name), f"invoke: {name}, the bytes of exec")
    result, _ = await platform.run("truncated", process)
    check_refused(check, "invoke", result)
    check(is_healthy(process), "invoke: healthy after the truncated image")
    for name in ("track2", "track1"):
        check(await answered(name), f"invoke: {name} again, the bytes of exec")
    for name, taken in seconds.items():
        print(f"invoke: {name} the first time {taken[0]:.2f} s, the second time {taken[1]:.2f} s")
    memory.clear()
    same = [await answered("track2") for _ in range(REMEMBERED)]
    check(all(same), f"invoke: {REMEMBERED} cases more of Track 2, the bytes of exec")
    median = statistics.median(seconds["track2"])
    print(
        f"invoke: {median:.2f} s a Track 2 job, median, and {median + CLIENT_SLEEPS:.2f} s with the client's own wait"
    )
    said = f"first {memory[0]:.0f}, 20th {memory[19]:.0f}, last {memory[-1]:.0f}, highest {max(memory):.0f} MiB"
    flat = statistics.median(memory[-20:]) <= GROWTH * statistics.median(memory[10:30])
    check(flat, f"invoke: memory over {REMEMBERED} cases: {said}")
    await check_signal(platform, check, process)


async def check_signal(platform, check, process):
    """The client ends the process, in the middle of a case."""
    running = asyncio.create_task(platform.run("track2", process))
    while not (platform.folder / "input/inputs.json").exists():
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    started = time.monotonic()
    await process.teardown()
    ended = time.monotonic() - started
    result, _ = await running
    check(result.return_code == 1, f"invoke: the case that was interrupted: {result.user_safe_error_message}")
    check(process.process.returncode == 0, f"invoke: ended {ended:.2f} s after SIGTERM during a case, with exit code 0")


def main(python, folder):
    os.chdir(ROOT)
    logging.disable()  # the client repeats all that the process says, and the S3 names each request
    check = Checks()
    platform = Platform(python, Path(folder))
    expected = asyncio.run(ask_exec(platform, check))
    asyncio.run(ask_invoke(platform, check, expected))
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
