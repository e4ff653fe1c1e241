"""`python -m xlstm_edge` and the `xlstm-edge` command: start the CLI, or say which extra it needs."""

import os
import signal
import sys

from .streams import INTERRUPTED, leave_at_once, prepare_streams


def main() -> None:
    """Run the command line; its packages are an extra, so that a device can do without."""
    prepare_streams()
    before = signal.signal(signal.SIGINT, leave_at_once)  # nothing is open yet, and an import must not see an exception
    try:
        from .cli import run_cli  # noqa: PLC0415  # the extra may be missing
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        os.write(2, f"error: expected the package {error.name}, got none; pip install 'xlstm-edge[cli]'\n".encode())
        sys.exit(2)
    signal.signal(signal.SIGINT, before)
    try:
        run_cli()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # Python kills itself again where the interrupt passed through code run from text
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
