"""The one exception that is meant for the user, how a command ends with it, and where its log lines go."""

import logging
import sys
from collections.abc import Callable

MAX_LINE, MAX_QUOTE = 600, 160  # characters of a message, and of a value in it
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it

EXTRAS = {
    "torch": ("torch", "torchvision", "timm", "safetensors", "torchmetrics", "faster_coco_eval"),
    "openvino": ("openvino",),
    "evaluation": ("evalutils", "matplotlib", "pandas", "sklearn"),
    "train": ("cv2", "ultralytics"),
    "cluster": ("distributed",),
}  # what the package's extras bring, by the names that are imported


class UserError(Exception):
    """A problem the user can mend: one line that names the file and the remedy.

    Every other exception is a bug and keeps its traceback.
    """


def exit_code(command: Callable[..., object], *arguments: object) -> int:
    """Run a command with its log on the terminal.

    Returns:
        The number that the command returns, else 0; 1 after a `UserError` or without a package of `EXTRAS`, and
        `INTERRUPTED` after Ctrl-C, each of which becomes one line on stderr. A command that is stopped may say in its
        `KeyboardInterrupt` how it goes on.
    """
    set_up_logging()
    try:
        code = command(*arguments)
    except (UserError, ModuleNotFoundError) as error:
        said = not_installed(error) if isinstance(error, ModuleNotFoundError) else error
        print(f"error: {said}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt as interrupt:
        print("; ".join(["stopped", *map(str, interrupt.args)]), file=sys.stderr, flush=True)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def not_installed(error: ModuleNotFoundError) -> UserError:
    """For a package of `EXTRAS`; any other is a bug and raised as it is."""
    package = (error.name or "").partition(".")[0]
    extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        raise error
    remedy = f"pip install 'midog[{extra}]'"
    if package == "torch":
        remedy += "; to run a system without it, 'midog[openvino]', and --model with what midog export-openvino wrote"
    return UserError(f"{package} is not installed, which this needs; {remedy}")


def brief(error: BaseException) -> str:
    """The last line of an error's text, for a one-line message; decoders quote what they stumbled over at length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:200].rstrip(".")


def quoted(value: object) -> str:
    """A value of a JSON file for a message: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list within a thousand lists
        return f"something long of type {type(value).__name__}"
    return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}..."


def one_line(text: str) -> str:
    """A message that quotes names as they are: line breaks and their like escaped, cut in the middle if it is long."""
    if len(text) > MAX_LINE:
        text = f"{text[: MAX_LINE // 2]} ... {text[-MAX_LINE // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def set_up_logging() -> None:
    """Show the library's log lines: news on stdout, "warning: ..." on stderr. A program that imports it has its own."""
    for name in ("midog", "resources"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
            logger.addHandler(_Terminal(logging.INFO))


class _Terminal(logging.Handler):
    """One line a record, beside progress bars and not into them."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        text = "warning: " * warning + record.getMessage()
        text = text.encode(errors="backslashreplace").decode()  # names of files may hold bytes that are no text
        stream = sys.stderr if warning else sys.stdout
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(text, file=stream)
        else:
            print(text, file=stream)
        stream.flush()
