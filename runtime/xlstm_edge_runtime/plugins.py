"""Providers on this machine: the package that brings one, its library registered, its devices, and how it is asked for.

Nothing is imported or registered before it is asked for, and then once a process.
"""

import importlib
import importlib.util
import threading
from typing import Any

import onnxruntime as ort

from .errors import DependencyError, InputError, printable
from .providers import Choice, Provider

QUIET = 4  # onnxruntime's severity of what is fatal


def installed(provider: Provider) -> tuple[str, str] | None:
    """Package and version that bring a provider here, None without; nothing is imported or registered."""
    if provider.module is not None and importlib.util.find_spec(provider.module) is not None:
        return provider.package, _version(provider.package)
    if provider.ort_name not in ort.get_available_providers():
        return None
    built_in = provider.package if provider.module is None else provider.other_package
    return built_in or provider.package, ort.__version__


def _version(package: str) -> str:
    from importlib import metadata  # noqa: PLC0415  # a twentieth of the time that a start takes

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # importable, but not installed by its name
        return "unknown"


def advice(provider: Provider) -> str:
    """How a provider that is missing comes onto a machine."""
    if provider.name == "coreml":
        return "run it on macOS, where pip install onnxruntime has it"
    if provider.module is None:
        return f"pip install {provider.package} in an environment without onnxruntime, whose place it takes"
    return f"pip install {provider.package}"


def require(provider: Provider) -> None:
    """DependencyError, with what to install, for a provider that is not on this machine."""
    if installed(provider) is None:
        got = f"onnxruntime {ort.__version__} without it"
        raise DependencyError(f"expected the provider {provider.name}, got {got}; {advice(provider)}")


_registered: set[str] = set()
_registering = threading.Lock()


def register(provider: Provider) -> None:
    """Register a plug-in's library with onnxruntime, once a process; DependencyError if it does not load."""
    # Providers log to onnxruntime's default logger what they also raise, or what is seen by where the nodes are.
    ort.set_default_logger_severity(QUIET)
    if provider.module is None or importlib.util.find_spec(provider.module) is None:
        return  # built in
    if not hasattr(ort, "get_ep_devices"):
        raise DependencyError(
            f"expected onnxruntime 1.24 or newer for the plug-in {provider.package}, got {ort.__version__}; "
            "upgrade it with pip install -U onnxruntime"
        )
    with _registering:
        if provider.ort_name in _registered or provider.ort_name in {d.ep_name for d in ort.get_ep_devices()}:
            return
        try:
            # Some providers take the name that they are registered under for their own.
            ort.register_execution_provider_library(
                provider.ort_name, importlib.import_module(provider.module).get_library_path()
            )
        except Exception as error:  # whatever a foreign package or its library raises
            reason = printable(" ".join(str(error).split()))[:160]
            raise DependencyError(
                f"expected {provider.package} to load into onnxruntime {ort.__version__}, got {reason}; install versions of "
                "the two that fit together"
            ) from error
        _registered.add(provider.ort_name)


def devices(provider: Provider) -> list[Any] | None:
    """onnxruntime's devices of a registered provider; None where it does not tell, as of those that are built in."""
    if not hasattr(ort, "get_ep_devices"):
        return None
    found = [device for device in ort.get_ep_devices() if device.ep_name == provider.ort_name]
    return found if found or provider.ort_name in _registered else None


def kind_of(device: Any) -> str:
    """CPU, GPU or NPU."""
    return str(device.device.type.name)


def attach(choice: Choice, options: ort.SessionOptions) -> list[tuple[str, dict[str, str]]] | None:
    """Ask for a provider: a plug-in in the session options (then None), one that is built in as the list returned.

    DependencyError without its package, InputError without a device for it.
    """
    provider = choice.provider
    require(provider)
    register(provider)
    found = devices(provider)
    if found is None:
        # Some that are built in, as WebGPU, look for their options here and ignore those of the list.
        for name, value in choice.options.items():
            options.add_session_config_entry(f"ep.{provider.ort_name.lower()}.{name}", value)
        return [(provider.ort_name, dict(choice.options))]
    kinds = provider.kinds[choice.options.get(provider.kind_by, "")]
    fitting = sorted((d for d in found if kind_of(d) in kinds), key=lambda d: kinds.index(kind_of(d)))
    if not fitting:
        got = ", ".join(sorted({kind_of(d) for d in found})) or "none"
        raise InputError(
            f"expected a device ({' or '.join(kinds)}) for {choice}, got {got}; see xlstm-edge devices, and check the driver"
        )
    options.add_provider_for_devices(fitting[:1], dict(choice.options))
    return None
