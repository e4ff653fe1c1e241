"""What other packages say does not reach the terminal, and afterwards everything speaks again."""

import logging
import os
import sys
import warnings

import pytest

from xlstm_edge_exporters.quiet import quiet, silent


def test_warnings_and_a_package_s_log_are_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.package")
    logger.setLevel(logging.INFO)
    with quiet("some.package"):
        warnings.warn("loud", stacklevel=1)
        logger.warning("loud")
        logger.error("failed")
    assert [record.message for record in caplog.records] == ["failed"]
    assert logger.level == logging.INFO
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", stacklevel=1)


def loud() -> None:
    with silent():
        print("loud")
        print("loud", file=sys.stderr)
        os.write(1, b"loud")
        os.write(2, b"loud")
        raise ValueError("a real failure")


def test_nothing_reaches_the_terminal_until_it_ends(capfd: pytest.CaptureFixture[str]) -> None:
    next_free = os.dup(1)
    os.close(next_free)
    print("before", end=" ")
    with pytest.raises(ValueError, match="a real failure"):
        loud()
    print("after")
    os.write(2, b"error")
    assert capfd.readouterr() == ("before after\n", "error")
    assert os.dup(1) == next_free, "descriptors stayed open"
    os.close(next_free)
