"""Choose the device that a model runs on."""

import torch

from fedgaze.errors import FedgazeError

__all__ = ["choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` is a GPU where one is usable, else the CPU.

    Raises:
        FedgazeError: The name is none of torch's, or this machine has no such device.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    # Each backend says in its own way that it is not there; CUDA with an AssertionError.
    except Exception as error:
        usable = ["auto", "cpu", *([accelerator.type] if accelerator else [])]
        raise FedgazeError(
            f"the device '{name}' cannot be used here; there is {', '.join(usable)}"
        ) from error
    return device
