"""Which engine runs a system's weights."""

from midog.engine.network import Engine
from midog.system import System


def engine_for(system: System, device: str) -> Engine:
    """The engine that a system's weights are for: OpenVINO where they were exported for it, else PyTorch.

    Args:
        system: with its weights.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: the engine cannot use the device.
        ModuleNotFoundError: the engine is not installed.
    """
    if system.is_exported:
        from midog.engine.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(device)
    from midog.engine.torch_engine import TorchEngine

    return TorchEngine(device)
