"""The machine this runs on."""

from __future__ import annotations

import os
import platform

import torch


def cores() -> int:
    """Cores this process may use: what a container grants, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """A device in words, e.g. "cuda:0 (NVIDIA H200)" or "cpu (2 cores, x86_64)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({cores()} cores, {platform.machine()})"
