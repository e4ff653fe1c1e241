"""`python -m xlstm_edge` and the `xlstm-edge` command: start the CLI, or say which extra it needs."""

import sys


def main() -> None:
    """Run the command line; its packages are an extra, so that a device can do without."""
    try:
        from .cli import run_cli  # noqa: PLC0415  # the extra may be missing
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(f"error: expected the package {error.name}, came none; pip install 'xlstm-edge[cli]'\n")
        sys.exit(2)
    run_cli()


if __name__ == "__main__":
    main()
