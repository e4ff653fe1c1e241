"""What this machine can run a bundle on: providers, the packages that bring them, the devices that they find."""

from typing import Any

from xlstm_edge_runtime.errors import DependencyError
from xlstm_edge_runtime.plugins import advice, devices, installed, kind_of, register
from xlstm_edge_runtime.providers import PROVIDERS, Provider


def list_devices() -> list[dict[str, Any]]:
    """One entry a provider, as plain data; plug-ins that are installed are registered in this process.

    `version` None: not installed, and `install` says how to. `precision` is what it computes in by default. `devices` None:
    onnxruntime does not tell. `problem`: why a package that is there does not load.
    """
    return [_entry(provider) for provider in PROVIDERS.values()]


def _entry(provider: Provider) -> dict[str, Any]:
    package, version = installed(provider) or (provider.package, None)
    entry: dict[str, Any] = {
        "provider": provider.name,
        "onnxruntime_name": provider.ort_name,
        "package": package,
        "version": version,
        "install": None if version else advice(provider),
        "precision": provider.precision(provider.defaults),
        "devices": [],
        "problem": None,
    }
    if version is None:
        return entry
    try:
        register(provider)
    except DependencyError as error:
        return entry | {"problem": str(error)}
    found = devices(provider)
    told = [{"type": kind_of(device), "vendor": str(device.device.vendor)} for device in found or ()]
    return entry | {"devices": None if found is None else told}
