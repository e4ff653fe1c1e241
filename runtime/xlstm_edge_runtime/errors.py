"""Every error this project raises on purpose, and nothing else.

    XlstmEdgeError
    ├── InputError         an argument is wrong: a token id, a shape, a sampling option, a path
    ├── CheckpointError    a checkpoint cannot be read: missing files, unknown family, missing or odd tensors
    ├── BundleError        a bundle cannot be used: not a bundle, another schema, damaged or missing files
    ├── StateError         a snapshot does not belong to this model, or is damaged
    ├── VerificationError  a check ran and failed: the numbers differ from what they must be
    └── DependencyError    an optional package is needed for this call

A message says what was expected, what came and what to do, in one sentence.
"""


class XlstmEdgeError(Exception):
    """Root of the tree: catch this to catch all."""


class InputError(XlstmEdgeError, ValueError):
    """An argument is wrong."""


class CheckpointError(XlstmEdgeError):
    """A checkpoint cannot be read."""


class BundleError(XlstmEdgeError):
    """A bundle cannot be used."""


class StateError(XlstmEdgeError):
    """A snapshot does not fit this model."""


class VerificationError(XlstmEdgeError):
    """A check ran and failed."""


class DependencyError(XlstmEdgeError, ImportError):
    """An optional package is missing."""
