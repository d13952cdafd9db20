"""OpenVINO as the engine: on CPUs, without PyTorch, from what `midog export-openvino` wrote."""

import sys

import numpy as np
from numpy.typing import NDArray

from midog import system as schema
from midog.engine.network import Network, Stored, processor_has_bfloat16
from midog.errors import UserError, brief

# With this package, importing OpenVINO sends usage data to its maker and takes longer; without it there is a stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

OUT_OF_MEMORY = ("bad_alloc", "could not create a memory object", "Failed to allocate")


class OpenVINONetwork:
    """A compiled model as a `midog.engine.network.Network`.

    Args:
        model: whose input is (N, H, W, 3).
    """

    def __init__(self, model: openvino.CompiledModel) -> None:
        self.request = model.create_infer_request()

    def __call__(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            answers = self.request.infer([np.ascontiguousarray(images.transpose(0, 2, 3, 1))])
        except RuntimeError as error:
            if not any(reason in str(error) for reason in OUT_OF_MEMORY):
                raise
        else:
            return tuple(answers.values())
        raise MemoryError


class OpenVINOEngine:
    """OpenVINO on a CPU, as a `midog.engine.network.Engine`.

    Args:
        device: "auto" or "cpu".

    Raises:
        UserError: for "cuda".
    """

    name, device = "OpenVINO", "cpu"

    def __init__(self, device: str) -> None:
        if device == "cuda":
            raise UserError(f"--device {device}: OpenVINO runs on the CPU here; give --device cpu, or other weights")
        self.core = openvino.Core()

    def type_of(self, precision: schema.Precision) -> str:
        """As the protocol."""
        return "bfloat16" if precision == "auto" and processor_has_bfloat16() else "float32"

    def load(self, stored: Stored) -> Network:
        """As the protocol; of an .xml file, which says all that the network's name and options do."""
        settings = {"INFERENCE_PRECISION_HINT": "bf16" if self.type_of(stored.precision) == "bfloat16" else "f32"}
        try:
            return OpenVINONetwork(self.core.compile_model(stored.path, "CPU", settings))
        except RuntimeError as error:
            reason = " ".join(brief(error).split())
            raise UserError(f"{stored.path}: OpenVINO cannot load it ({reason}); export it again") from None
