"""What was taken from a checkpoint and what was not: a record for people, made while it is opened."""

from dataclasses import dataclass

from xlstm_edge_runtime.errors import shown

from ..weights import listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Where the model was found, and everything in the files that is not part of the exported one.

    `prefix` is what stands before the model's names, `key` the state dict's place inside a torch file (parts joined by
    /), `section` that of the model's settings inside the config. Names are those of the files.
    """

    prefix: str = ""
    key: str | None = None
    section: str | None = None
    wrappers: tuple[str, ...] = ()  # `_orig_mod`, `module`...: parts taken out of the middle of names
    renamed: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()  # tensors of the larger net around the model
    ignored_tensors: tuple[str, ...] = ()  # buffers and other entries that cannot change the outputs
    ignored_settings: tuple[str, ...] = ()
    unread_files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One line a fact, nothing for what is as usual; foreign names are escaped and cut."""
        lines = []
        if self.key is not None:
            lines.append(f"weights taken from the key {shown(self.key)}")
        if self.prefix:
            lines.append(f"prefix {shown(self.prefix)} taken off the tensors' names")
        if self.wrappers:
            lines.append(f"wrapper names taken out of the tensors' names: {listed(self.wrappers)}")
        lines += [f"{listed([old])} read as {new}" for old, new in self.renamed if old != new]
        if self.section is not None:
            lines.append(f"settings taken from the section {shown(self.section)} of the config")
        for what, names in (
            ("left out, outside the exported model", self.left_out),
            ("ignored tensors and entries", self.ignored_tensors),
            ("ignored settings, which cannot change the outputs", self.ignored_settings),
            ("weight files not read", self.unread_files),
        ):
            if names:
                lines.append(f"{what}: {listed(names)}")
        return lines
